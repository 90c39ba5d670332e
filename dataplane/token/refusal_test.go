package token

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

// refused asserts the exact refusal, twice, and with a warm cache.
func refused(t *testing.T, name, token string, want *Refusal) {
	t.Helper()
	v := NewVerifier(compile(t, issuerSpec(), keySet(), NewCache(CacheConfig{})))
	if _, _, refusal := v.Verify(mint(headerMap(nil), claims(nil)), noon); refusal != nil {
		t.Fatal(refusal)
	}
	for range 2 {
		got, _, refusal := v.Verify(token, noon)
		if refusal != want || got != nil {
			t.Errorf("%s: got %v, want %v", name, refusal, want)
		}
	}
}

func TestVerifyRefusesHeaders(t *testing.T) {
	for _, c := range []struct {
		name   string
		change m
		want   *Refusal
	}{
		{"no alg", m{"alg": nil}, ErrHeader},
		{"alg number", m{"alg": 256}, ErrHeader},
		{"alg null", m{"alg": jsonNull}, ErrHeader},
		{"none", m{"alg": "none"}, ErrAlgorithm},
		{"None", m{"alg": "None"}, ErrAlgorithm},
		{"NONE", m{"alg": "NONE"}, ErrAlgorithm},
		{"nOnE", m{"alg": "nOnE"}, ErrAlgorithm},
		{"none and NUL", m{"alg": "none\x00"}, ErrAlgorithm},
		{"empty alg", m{"alg": ""}, ErrAlgorithm},
		{"lower case", m{"alg": "es256"}, ErrAlgorithm},
		{"HS256", m{"alg": "HS256"}, ErrAlgorithm},
		{"HS512", m{"alg": "HS512"}, ErrAlgorithm},
		{"ES256K", m{"alg": "ES256K"}, ErrAlgorithm},
		{"another algorithm of the same kid", m{"alg": "ES384"}, ErrAlgorithm},
		{"RS256 with a curve's key", m{"alg": "RS256"}, ErrAlgorithm},
		{"PBES2 with a huge p2c", m{"alg": "PBES2-HS256+A128KW", "p2c": 2147483647, "p2s": "x"}, ErrAlgorithm},
		{"enc", m{"enc": "A256GCM"}, ErrExtension},
		{"crit", m{"crit": []string{"exp"}, "exp": 1}, ErrExtension},
		{"empty crit", m{"crit": []string{}}, ErrExtension},
		{"b64", m{"b64": false}, ErrExtension},
		{"b64 true", m{"b64": true}, ErrExtension},
		{"zip", m{"zip": "DEF"}, ErrExtension},
		{"nested", m{"cty": "JWT"}, ErrExtension},
		{"kid number", m{"kid": 1}, ErrHeader},
		{"kid null", m{"kid": jsonNull}, ErrHeader},
		{"kid path", m{"kid": "../../../../dev/null"}, ErrUnknownKey},
		{"kid SQL", m{"kid": "x' UNION SELECT 'secret'--"}, ErrUnknownKey},
		{"kid NUL", m{"kid": "p256\x00"}, ErrUnknownKey},
		{"kid case", m{"kid": "P256"}, ErrUnknownKey},
		{"kid empty", m{"kid": ""}, ErrUnknownKey},
		{"typ missing", m{"typ": nil}, ErrType},
		{"typ JWT where it is not accepted", m{"typ": "JWT"}, ErrType},
		{"typ of an ID token", m{"typ": "id_token+jwt"}, ErrType},
		{"typ of a logout token", m{"typ": "logout+jwt"}, ErrType},
		{"typ null", m{"typ": jsonNull}, ErrHeader},
		{"typ with two types", m{"typ": "application/x/at+jwt"}, ErrType},
		{"typ with the Kelvin sign's kin", m{"typ": "at+ſwt"}, ErrType},
		{"header too large", m{"x": strings.Repeat("x", 2<<10)}, ErrHeaderSize},
	} {
		refused(t, c.name, mintRaw(jsonOf(headerMap(c.change)), jsonOf(claims(nil)), "ES256"), c.want)
	}
}

func TestVerifyIgnoresKeysInTheHeader(t *testing.T) {
	v := NewVerifier(compile(t, issuerSpec(), keySet(), nil))
	h := headerMap(m{"jwk": m{"kty": "EC"}, "jku": "https://evil.example", "x5u": "https://evil.example", "x5c": []string{b64(spki("other"))}, "x5t": "x"})
	if _, _, refusal := v.Verify(mint(h, claims(nil)), noon); refusal != nil {
		t.Errorf("signed with the issuer's key: %v", refusal)
	}
	signed := b64(jsonOf(h)) + "." + b64(jsonOf(claims(nil)))
	refused(t, "signed with the header's key", signed+"."+b64(signature(signed, "ES256", "other")), ErrSignature)
}

func TestVerifyAcceptsTypeSpellings(t *testing.T) {
	v := NewVerifier(compile(t, issuerSpec(), keySet(), nil))
	for _, typ := range []string{"at+jwt", "AT+JWT", "application/at+jwt", "Application/at+jwt"} {
		if _, _, refusal := v.Verify(mint(headerMap(m{"typ": typ}), claims(nil)), noon); refusal != nil {
			t.Errorf("%s: %v", typ, refusal)
		}
	}
	spec := issuerSpec()
	spec.Types = []string{"JWT"}
	v = NewVerifier(compile(t, spec, keySet(), nil))
	for _, c := range []struct {
		name   string
		change m
		want   *Refusal
	}{
		{"an access token", nil, nil},
		{"marked as one", m{"typ": "Bearer", "token_use": "access"}, nil},
		{"nonce", m{"nonce": "n"}, ErrNotAccess},
		{"at_hash", m{"at_hash": "x"}, ErrNotAccess},
		{"c_hash", m{"c_hash": "x"}, ErrNotAccess},
		{"typ ID", m{"typ": "ID"}, ErrNotAccess},
		{"typ Refresh", m{"typ": "Refresh"}, ErrNotAccess},
		{"typ no string", m{"typ": 1}, ErrNotAccess},
		{"token_use id", m{"token_use": "id"}, ErrNotAccess},
		{"logout", m{"events": m{"http://schemas.openid.net/event/backchannel-logout": m{}}}, ErrNotAccess},
	} {
		if _, _, refusal := v.Verify(mint(headerMap(m{"typ": "JWT"}), claims(c.change)), noon); refusal != c.want {
			t.Errorf("%s: got %v, want %v", c.name, refusal, c.want)
		}
	}
}

func TestVerifyRefusesClaims(t *testing.T) {
	nested := "1"
	for range 20 {
		nested = "[" + nested + "]"
	}
	now := noon.Unix()
	for _, c := range []struct {
		name   string
		change m
		want   *Refusal
	}{
		{"no exp", m{"exp": nil}, ErrNoExpiry},
		{"exp string", m{"exp": fmt.Sprint(now + 600)}, ErrClaimType},
		{"exp null", m{"exp": jsonNull}, ErrClaimType},
		{"exp array", m{"exp": []int64{now + 600}}, ErrClaimType},
		{"exp true", m{"exp": true}, ErrClaimType},
		{"exp negative", m{"exp": -1}, ErrClaimType},
		{"exp beyond everything", m{"exp": json.RawMessage("1e400")}, ErrClaimType},
		{"exp beyond 2^53", m{"exp": json.RawMessage("9223372036854775808")}, ErrClaimType},
		{"expired", m{"exp": now - 30}, ErrExpired},
		{"expired by a fraction", m{"exp": float64(now) - 29.5}, ErrExpired},
		{"no iat", m{"iat": nil}, ErrNoIssuedAt},
		{"iat string", m{"iat": "1"}, ErrClaimType},
		{"issued in the future", m{"iat": now + 31, "exp": now + 600}, ErrNotYetValid},
		{"nbf in the future", m{"nbf": now + 31}, ErrNotYetValid},
		{"nbf string", m{"nbf": "0"}, ErrClaimType},
		{"lives too long", m{"iat": now - 60, "exp": now - 60 + 24*3600 + 1}, ErrLifetime},
		{"no iss", m{"iss": nil}, ErrIssuer},
		{"iss other", m{"iss": "https://evil.example"}, ErrIssuer},
		{"iss with a slash", m{"iss": "https://issuer.example/"}, ErrIssuer},
		{"iss case", m{"iss": "https://Issuer.example"}, ErrIssuer},
		{"iss array", m{"iss": []string{"https://issuer.example"}}, ErrClaimType},
		{"iss null", m{"iss": jsonNull}, ErrClaimType},
		{"aud object", m{"aud": m{"https://api.example": true}}, ErrClaimType},
		{"aud null", m{"aud": jsonNull}, ErrClaimType},
		{"aud number", m{"aud": 1}, ErrClaimType},
		{"aud array with null", m{"aud": []any{"https://api.example", nil}}, ErrClaimType},
		{"aud nested array", m{"aud": [][]string{{"https://api.example"}}}, ErrClaimType},
		{"sub number", m{"sub": 1}, ErrClaimType},
		{"sub null", m{"sub": jsonNull}, ErrClaimType},
		{"sub with a line break", m{"sub": "alice\r\nX-Admin: 1"}, ErrClaimType},
		{"jti array", m{"jti": []string{"a"}}, ErrClaimType},
		{"sid object", m{"sid": m{}}, ErrClaimType},
		{"client object", m{"client_id": m{}}, ErrClaimType},
		{"scope object", m{"scope": m{"orders:read": true}}, ErrClaimType},
		{"scope array with numbers", m{"scope": []any{"a", 1}}, ErrClaimType},
		{"scope element with a space", m{"scope": []any{"a b"}}, ErrClaimType},
		{"roles true", m{"roles": true}, ErrClaimType},
		{"roles with a control", m{"roles": []string{"a\nb"}}, ErrClaimType},
		{"groups with an empty one", m{"groups": []string{""}}, ErrClaimType},
		{"bound to a key (DPoP)", m{"cnf": m{"jkt": "x"}}, ErrBinding},
		{"bound twice", m{"cnf": m{"jkt": "x", "x5t#S256": b64(make([]byte, 32))}}, ErrBinding},
		{"bound to nothing", m{"cnf": m{}}, ErrBinding},
		{"cnf string", m{"cnf": "x"}, ErrClaimType},
		{"short thumbprint", m{"cnf": m{"x5t#S256": "AAAA"}}, ErrClaimType},
		{"deep", m{"x": json.RawMessage(nested)}, ErrDepth},
	} {
		refused(t, c.name, mint(headerMap(nil), claims(c.change)), c.want)
	}
}

func TestVerifyRefusesForms(t *testing.T) {
	good := mint(headerMap(nil), claims(nil))
	parts := strings.Split(good, ".")
	h, c, s := parts[0], parts[1], parts[2]
	flat := func(extra string) string {
		return fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q%s}`, c, h, s, extra)
	}
	ecdsaOverflow := new(big.Int).Lsh(big.NewInt(1), 256)
	for _, x := range []struct {
		name, token string
		want        *Refusal
	}{
		{"empty", "", ErrParts},
		{"two parts", h + "." + c, ErrParts},
		{"four parts", good + ".", ErrParts},
		{"JWE", "a.b.c.d.e", ErrParts},
		{"dots", strings.Repeat(".", MaxSize), ErrParts},
		{"millions of dots", strings.Repeat(".", 2_000_000), ErrTooLarge},
		{"too large", good + strings.Repeat("A", MaxSize), ErrTooLarge},
		{"no header", "." + c + "." + s, ErrParts},
		{"no claims", h + ".." + s, ErrParts},
		{"no signature", h + "." + c + ".", ErrSignature},
		{"flattened JSON", flat(""), ErrParts},
		{"flattened JSON with claims outside", flat(`,"iss":"https://issuer.example","exp":9999999999`), ErrParts},
		{"flattened JSON of three parts", `{"protected":"a.b.c"}`, ErrEncoding},
		{"general JSON", fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, c, h, s), ErrParts},
		{"padding", h + "=." + c + "." + s, ErrEncoding},
		{"padded signature", good + "==", ErrEncoding},
		{"standard alphabet", h + "." + c + "." + "+/" + s[2:], ErrEncoding},
		{"line feed inside", h[:4] + "\n" + h[4:] + "." + c + "." + s, ErrEncoding},
		{"carriage return in the signature", good[:len(good)-4] + "\r" + good[len(good)-4:], ErrEncoding},
		{"line feed at the end", good + "\n", ErrEncoding},
		{"space at the end", good + " ", ErrEncoding},
		{"space before", " " + good, ErrEncoding},
		{"NUL", good + "\x00", ErrEncoding},
		{"percent encoded", strings.Replace(good, "e", "%65", 1), ErrEncoding},
		{"unused bits", unusedBits(good), ErrEncoding},
		{"header array", b64([]byte(`["alg","ES256"]`)) + "." + c + "." + s, ErrHeader},
		{"header with rest", b64(append(jsonOf(headerMap(nil)), '}')) + "." + c + "." + s, ErrHeader},
		{"header with BOM", b64(append([]byte("\xef\xbb\xbf"), jsonOf(headerMap(nil))...)) + "." + c + "." + s, ErrHeader},
		{"claims array", h + "." + b64([]byte(`[]`)) + "." + s, ErrClaims},
		{"claims of another", h + "." + b64(jsonOf(claims(m{"sub": "bob"}))) + "." + s, ErrSignature},
		{"signature of another", h + "." + c + "." + strings.Split(mint(headerMap(nil), claims(m{"sub": "bob"})), ".")[2], ErrSignature},
		{"zero signature", h + "." + c + "." + b64(make([]byte, 64)), ErrSignature},
		{"short signature", h + "." + c + "." + s[:84], ErrSignature},
		{"signature out of range", h + "." + c + "." + b64(append(ecdsaOverflow.Bytes(), make([]byte, 31)...)), ErrSignature},
		{"DER signature", h + "." + c + "." + b64([]byte{0x30, 6, 2, 1, 1, 2, 1, 1}), ErrSignature},
	} {
		refused(t, x.name, x.token, x.want)
	}
}

// unusedBits sets a bit of the signature's last character that no octet uses.
func unusedBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last|1])
}

func TestVerifyRefusesDuplicates(t *testing.T) {
	exp := fmt.Sprint(noon.Unix() + 600)
	plain := strings.TrimSuffix(string(jsonOf(claims(m{"exp": nil}))), "}")
	head := string(jsonOf(headerMap(nil)))
	for name, text := range map[string]string{
		"exp twice":      plain + `,"exp":` + exp + `,"exp":` + exp + `}`,
		"sub twice":      plain + `,"exp":` + exp + `,"sub":"bob"}`,
		"escaped name":   plain + `,"exp":` + exp + `,"su\u0062":"bob"}`,
		"inside":         plain + `,"exp":` + exp + `,"x":{"a":[{"b":1,"b":1}]}}`,
		"empty name":     plain + `,"exp":` + exp + `,"":1,"":1}`,
		"null and value": plain + `,"exp":null,"exp":` + exp + `}`,
	} {
		refused(t, name, mintRaw([]byte(head), []byte(text), "ES256"), ErrDuplicate)
	}
	for _, text := range []string{`{"alg":"none",` + head[1:], `{"\u0061lg":"none",` + head[1:], head[:len(head)-1] + `,"kid":"p256"}`} {
		refused(t, text, mintRaw([]byte(text), jsonOf(claims(nil)), "ES256"), ErrDuplicate)
	}
}

// The classic: the public key, which everybody has, used as an HMAC secret.
func TestVerifyRefusesKeyConfusion(t *testing.T) {
	der := spki("rsa")
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		t.Fatal(err)
	}
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	for name, secret := range map[string][]byte{
		"DER": der, "PEM": asPEM, "PEM without line feed": []byte(strings.TrimSpace(string(asPEM))), "JWK": jsonOf(key), "empty": {},
	} {
		for _, kid := range []any{"rsa", "p256", nil, ""} {
			signed := b64(jsonOf(headerMap(m{"alg": "HS256", "kid": kid}))) + "." + b64(jsonOf(claims(nil)))
			refused(t, name, signed+"."+b64(hmacOf(signed, secret)), ErrAlgorithm)
		}
	}
	// Also where the issuer does declare HS256, with a secret of its own.
	spec := issuerSpec()
	spec.HmacSecret = base64.StdEncoding.EncodeToString([]byte(sharedSecret))
	v := NewVerifier(compile(t, spec, keySet(), nil))
	signed := b64(jsonOf(headerMap(m{"alg": "HS256", "kid": "rsa"}))) + "." + b64(jsonOf(claims(nil)))
	if _, _, refusal := v.Verify(signed+"."+b64(hmacOf(signed, der)), noon); refusal != ErrSignature {
		t.Error(refusal)
	}
}
