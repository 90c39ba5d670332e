package token

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// key verifies the signatures of one algorithm for one kid.
type key struct {
	kid       string
	algorithm algorithm
	public    any
	// print identifies kid, algorithm and key material, so that a cached verdict
	// can tell whether the key it stands on is still in the set.
	print [sha256.Size]byte
}

// keys is an immutable key set.
type keys struct {
	byKid map[string][]*key
	list  []*key
	// staleAt, in Unix seconds: from then on the keys are not used.
	staleAt int64
}

// keysOf compiles a vetted key set. It does no I/O. A key that does not fit one
// of its algorithms is an error: whoever vetted the set should not have let it
// pass, and half a set is not a set.
func keysOf(set *configv1.KeySet) (*keys, error) {
	ks := &keys{byKid: map[string][]*key{}, staleAt: math.MaxInt64}
	if set.GetStaleAt() != nil {
		ks.staleAt = set.GetStaleAt().GetSeconds()
	}
	for i, k := range set.GetKeys() {
		public, err := x509.ParsePKIXPublicKey(k.GetSpki())
		if err != nil {
			return nil, fmt.Errorf("keys[%d].spki: %w", i, err)
		}
		if len(k.GetAlgorithms()) == 0 {
			return nil, fmt.Errorf("keys[%d].algorithms: none, so the key could verify nothing", i)
		}
		for _, name := range k.GetAlgorithms() {
			a := algorithm(name)
			if err := a.fits(public); err != nil {
				return nil, fmt.Errorf("keys[%d].algorithms: %w", i, err)
			}
			ks.add(&key{kid: k.GetKid(), algorithm: a, public: public, print: printOf(k.GetKid(), a, k.GetSpki())})
		}
	}
	return ks, nil
}

func (ks *keys) add(k *key) {
	ks.byKid[k.kid] = append(ks.byKid[k.kid], k)
	ks.list = append(ks.list, k)
}

// holds says whether a key with the print is in the set. Sets are short.
func (ks *keys) holds(wanted *[sha256.Size]byte) bool {
	for _, k := range ks.list {
		if k.print == *wanted {
			return true
		}
	}
	return false
}

// find returns the key for a token's kid and algorithm. A token without a kid is
// verified only if a single key has the algorithm: trying one after another would
// let the caller choose how much work a token is.
func (ks *keys) find(kid string, named bool, a algorithm) *key {
	candidates := ks.list
	if named {
		candidates = ks.byKid[kid]
	}
	var found *key
	for _, k := range candidates {
		if k.algorithm == a {
			if found != nil {
				return nil
			}
			found = k
		}
	}
	return found
}

func printOf(kid string, a algorithm, material []byte) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s:%s:", len(kid), kid, a)
	h.Write(material)
	return [sha256.Size]byte(h.Sum(nil))
}
