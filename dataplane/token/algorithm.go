package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"math/big"
)

// algorithm is a JWS signature algorithm (RFC 7518 section 3.1, RFC 8037). It
// fixes everything: the kind of key, the curve, the hash. "none" is not one.
type algorithm string

const (
	rs256 algorithm = "RS256"
	rs384 algorithm = "RS384"
	rs512 algorithm = "RS512"
	ps256 algorithm = "PS256"
	ps384 algorithm = "PS384"
	ps512 algorithm = "PS512"
	es256 algorithm = "ES256"
	es384 algorithm = "ES384"
	es512 algorithm = "ES512"
	edDSA algorithm = "EdDSA"
	hs256 algorithm = "HS256"
)

// asymmetric lists what an issuer may sign with when it does not say.
func asymmetric() []algorithm {
	return []algorithm{rs256, rs384, rs512, ps256, ps384, ps512, es256, es384, es512, edDSA}
}

func (a algorithm) known() bool {
	switch a {
	case rs256, rs384, rs512, ps256, ps384, ps512, es256, es384, es512, edDSA, hs256:
		return true
	}
	return false
}

func (a algorithm) hash() crypto.Hash {
	switch a {
	case rs256, ps256, es256, hs256:
		return crypto.SHA256
	case rs384, ps384, es384:
		return crypto.SHA384
	}
	return crypto.SHA512
}

func (a algorithm) sum(data []byte) []byte {
	switch a.hash() {
	case crypto.SHA256:
		d := sha256.Sum256(data)
		return d[:]
	case crypto.SHA384:
		d := sha512.Sum384(data)
		return d[:]
	}
	d := sha512.Sum512(data)
	return d[:]
}

func (a algorithm) curve() elliptic.Curve {
	switch a {
	case es256:
		return elliptic.P256()
	case es384:
		return elliptic.P384()
	case es512:
		return elliptic.P521()
	}
	return nil
}

// Bounds on RSA moduli. RFC 7518 section 3.3 asks for 2048 bits or more; above
// 8192 a signature costs more than a request should.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// fits says whether the key may verify the algorithm.
func (a algorithm) fits(public any) error {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("an RSA key of %d bits, not of %d to %d", bits, minRSABits, maxRSABits)
		}
		switch a {
		case rs256, rs384, rs512, ps256, ps384, ps512:
			return nil
		}
	case *ecdsa.PublicKey:
		if a.curve() != nil && a.curve() == k.Curve {
			return nil
		}
	case ed25519.PublicKey:
		if a == edDSA {
			return nil
		}
	}
	return fmt.Errorf("a key of type %T cannot verify %s", public, a)
}

// verify checks the signature with a key that fits the algorithm.
func (a algorithm) verify(public any, signed, signature []byte) bool {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if a[0] == 'R' {
			return rsa.VerifyPKCS1v15(k, a.hash(), a.sum(signed), signature) == nil
		}
		// RFC 7518 section 3.5: the salt is as long as the hash.
		options := rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
		return rsa.VerifyPSS(k, a.hash(), a.sum(signed), signature, &options) == nil
	case *ecdsa.PublicKey:
		// RFC 7518 section 3.4: R and S, each as long as the curve's order.
		size := (k.Curve.Params().BitSize + 7) / 8
		if len(signature) != 2*size {
			return false
		}
		r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
		return ecdsa.Verify(k, a.sum(signed), r, s)
	case ed25519.PublicKey:
		return len(signature) == ed25519.SignatureSize && ed25519.Verify(k, signed, signature)
	case secret:
		mac := hmac.New(sha256.New, k)
		mac.Write(signed)
		return hmac.Equal(mac.Sum(nil), signature)
	}
	return false
}

// secret is an HMAC secret. Only an issuer that declares one has it, and it
// never comes out of a key set.
type secret []byte
