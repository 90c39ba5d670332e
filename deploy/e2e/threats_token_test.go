package e2e_test

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/deploy/cluster"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

const hmacSecret = "a secret of an issuer, 32 bytes!"

// guarded is a route on /path that takes tokens of the issuers for the audience.
func guarded(name, issuers, audience string, more ...string) string {
	return routeYAML(name, "matches: [{path: {prefix: /"+name+"}}]",
		fmt.Sprintf("policies: [{jwt: {issuers: [%s], audiences: [%s]}}%s]", issuers, audience, strings.Join(more, "")))
}

func TestThreatsOfTokens(t *testing.T) {
	h := start(t, cluster.Config{})
	ec, rs := newES256(t, "ec"), newRS256(t, "rs")
	h.apply(issuerWith(ec, rs) + fmt.Sprintf(`
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: shared}
spec: {issuer: 'https://shared.example', hmacSecret: %q}
`, base64.StdEncoding.EncodeToString([]byte(hmacSecret))) +
		guarded("api", "ext", "https://api.example") + guarded("shared", "shared", "https://api.example") +
		guarded("account", "ext", "https://api.example", ", {authorize: {rules: [{name: r, require: 'auth.claims.account == 9007199254740993'}]}}") +
		guarded("level", "ext", "https://api.example", ", {authorize: {rules: [{name: r, require: 'auth.claims.level >= 3'}]}}") +
		guarded("role", "ext", "https://api.example", ", {authorize: {rules: [{name: r, roles: [admin]}]}}"))
	accept := func(t *testing.T, what, path, token string) {
		t.Helper()
		a := h.get(0, path, authorization(token)...)
		if got := h.up.take(); a.Status != 200 || len(got) != 1 {
			t.Errorf("%s: %d %s, the upstream saw %v", what, a.Status, a.Body, got)
		}
	}
	deny := func(t *testing.T, what, token, reason string) {
		t.Helper()
		a := h.get(0, "/api", authorization(token)...)
		refused(t, what, a, 401, reason)
		if challenge := a.Header.Get("WWW-Authenticate"); a.Status == 401 && !strings.HasPrefix(challenge, `Bearer realm="portcullis", error="invalid_token", error_description="`) {
			t.Errorf("%s: challenge %q (RFC 6750, 3)", what, challenge)
		}
		if strings.Contains(a.Body+a.Header.Get("WWW-Authenticate"), "mallory") {
			t.Errorf("%s: the refusal repeats what the token says: %s", what, a.Body)
		}
		h.untouched(t, what)
	}
	for i, k := range []keyPair{ec, rs} {
		accept(t, "a good token", "/api", k.token("i", i))
	}
	accept(t, "HS256 where it is declared", "/shared", hs256([]byte(hmacSecret), `{"alg":"HS256","typ":"at+jwt"}`, claims("iss", "https://shared.example")))
	evil := claims("sub", "mallory", "roles", "admin")

	t.Run("none", func(t *testing.T) {
		for _, alg := range []string{"none", "None", "NONE", "nOnE", "none ", " none", "none\x00", "", "null", "n\u006fne", "\u0274one", "HS256,none"} {
			for _, header := range []map[string]any{{"alg": alg, "typ": "at+jwt", "kid": "ec"}, {"alg": alg, "typ": "at+jwt"}} {
				head := encode(header) + "." + encode(evil) + "."
				for _, signature := range []string{"", b64([]byte("x")), b64(make([]byte, 64)), b64(ec.signature(head))} {
					deny(t, fmt.Sprintf("alg %q, signature %q", alg, signature), head+signature, "token_bad_signature")
				}
			}
		}
		for _, header := range []string{`{"alg":null,"typ":"at+jwt"}`, `{"alg":0,"typ":"at+jwt"}`, `{"alg":["none"],"typ":"at+jwt"}`, `{"typ":"at+jwt"}`, `{"Alg":"none","typ":"at+jwt"}`, `{"ALG":"ES256","typ":"at+jwt"}`,
			`[]`, `"none"`, `null`, `{}`, ``, `{"alg":"ES256"`, `{"alg":"ES256","typ":"at+jwt"} `, `{"alg":"ES256","typ":"at+jwt"}{}`, "\xef\xbb\xbf{\"alg\":\"ES256\",\"typ\":\"at+jwt\"}"} {
			token := ec.sign(header, evil)
			if strings.HasSuffix(header, "} ") {
				accept(t, "blanks around JSON are JSON", "/api", token)
				continue
			}
			deny(t, "header "+header, token, "credential_malformed")
		}
	})
	t.Run("confusion", func(t *testing.T) {
		for _, k := range []keyPair{ec, rs} {
			spki, err := x509.MarshalPKIXPublicKey(k.private.Public())
			if err != nil {
				t.Fatal(err)
			}
			jwk, err := json.Marshal(k.jwk())
			if err != nil {
				t.Fatal(err)
			}
			block := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
			secrets := map[string][]byte{"PEM": block, "PEM, trimmed": block[:len(block)-1], "DER": spki, "JWK": jwk, "JWKS": []byte(jwks(k)), "empty": {}, "base64": []byte(base64.StdEncoding.EncodeToString(spki)), "kid": []byte(k.kid)}
			switch public := k.private.Public().(type) {
			case *rsa.PublicKey:
				secrets["modulus"] = public.N.Bytes()
				secrets["PKCS#1"] = x509.MarshalPKCS1PublicKey(public)
			case *ecdsa.PublicKey:
				raw, _ := public.Bytes()
				secrets["point"] = raw
			}
			for name, secret := range secrets {
				for _, alg := range []string{"HS256", "HS384", "HS512"} {
					deny(t, "symmetric with "+name, hs256(secret, map[string]any{"alg": alg, "typ": "at+jwt", "kid": k.kid}, evil), "token_bad_signature")
				}
				deny(t, "asymmetric name, symmetric MAC with "+name, hs256(secret, k.header(), evil), "token_bad_signature")
			}
		}
		// The algorithm is the key's, not the header's.
		deny(t, "RS256 by the header, a key for ES256", rs.sign(map[string]any{"alg": "RS256", "typ": "at+jwt", "kid": "ec"}, evil), "token_bad_signature")
		deny(t, "ES256 by the header, a key for RS256", ec.sign(map[string]any{"alg": "ES256", "typ": "at+jwt", "kid": "rs"}, evil), "token_bad_signature")
		for _, alg := range []string{"es256", "ES256K", "ES384", "EdDSA", "RSA1_5", "A128KW", "dir", "PBES2-HS256+A128KW", "ES256 ", "rs256"} {
			deny(t, "alg "+alg, ec.sign(ec.header("alg", alg), evil), "token_bad_signature")
		}
		// A token that brings a key, or says where one is, brings nothing.
		other := newES256(t, "ec")
		for name, value := range map[string]any{"jwk": other.jwk(), "jku": h.up.URL + "/jwks", "x5u": h.up.URL + "/cert", "x5c": []string{"MIIB"}, "x5t": "x", "x5t#S256": "x"} {
			deny(t, "own "+name, other.sign(other.header(name, value), evil), "token_bad_signature")
		}
		deny(t, "own jwk and another kid", other.sign(other.header("jwk", other.jwk(), "kid", "mine"), evil), "token_bad_signature")
		// Signatures that are none.
		head := encode(ec.header()) + "." + encode(evil) + "."
		order := sha256.Sum256(nil)
		for name, sig := range map[string][]byte{"zeros (CVE-2022-21449)": make([]byte, 64), "empty": {}, "short": make([]byte, 63), "long": make([]byte, 65), "DER": {0x30, 6, 2, 1, 1, 2, 1, 1}, "ones": append(append(make([]byte, 31), 1), append(make([]byte, 31), 1)...), "hash": order[:]} {
			deny(t, "signature of "+name, head+b64(sig), "token_bad_signature")
		}
		good := strings.Split(ec.token(), ".")
		deny(t, "other claims under a good signature", good[0]+"."+encode(evil)+"."+good[2], "token_bad_signature")
		deny(t, "other header under a good signature", encode(ec.header("x", 1))+"."+good[1]+"."+good[2], "token_bad_signature")
		deny(t, "MAC under the other issuer's secret", hs256([]byte(hmacSecret), `{"alg":"HS256","typ":"at+jwt"}`, claims("iss", "https://shared.example")), "token_wrong_issuer")
		a := h.get(0, "/shared", authorization(ec.sign(ec.header(), claims("iss", "https://shared.example")))...)
		refused(t, "ES256 for an issuer of HS256", a, 401, "token_bad_signature")
	})
	t.Run("serialisation", func(t *testing.T) {
		token := ec.token("sub", "mallory")
		parts := strings.Split(token, ".")
		flattened, _ := json.Marshal(map[string]any{"protected": parts[0], "payload": parts[1], "signature": parts[2]})
		general, _ := json.Marshal(map[string]any{"payload": parts[1], "signatures": []any{map[string]any{"protected": parts[0], "signature": parts[2]}}})
		mixed, _ := json.Marshal(map[string]any{"protected": parts[0], "payload": parts[1], "signature": parts[2], "sub": "mallory", "iss": extIssuer})
		for name, bad := range map[string]string{
			"flattened JSON": string(flattened), "general JSON": string(general), "claims outside": string(mixed), "flattened, encoded": b64(flattened),
			"padding": parts[0] + "=." + parts[1] + "." + parts[2], "padding of the signature": token + "==", "padding of the claims": parts[0] + "." + parts[1] + "=." + parts[2],
			"standard alphabet": ec.sign(`{"alg":"ES256","typ":"at+jwt","kid":"ec","x":"???>>>"}`, claims()) + "+/", "trailing dot": token + ".", "leading dot": "." + token, "two parts": parts[0] + "." + parts[1],
			"four parts": token + "." + parts[2], "five parts (JWE)": "a.b.c.d.e", "dots": strings.Repeat(".", 8000), "empty": ".", "two dots": "..", "empty claims": parts[0] + ".." + parts[2], "empty header": "." + parts[1] + "." + parts[2],
			"space": parts[0] + ". " + parts[1] + "." + parts[2], "tab": parts[0] + ".\t" + parts[1] + "." + parts[2], "unused bits": withUnusedBits(parts[2], parts[0]+"."+parts[1]+"."),
			"doubled": token + "." + token, "huge": token + strings.Repeat("A", 17<<10), "compressed JWE": encode(`{"alg":"dir","enc":"A128GCM","zip":"DEF"}`) + "..AAAA.AAAA.AAAA",
			"p2c": encode(`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"AAAA"}`) + ".AAAA.AAAA.AAAA.AAAA",
		} {
			deny(t, name, bad, "credential_malformed")
		}
		for _, breaker := range []string{"\r\n ", "\n", "\r", "\x00", "\x0b"} {
			text := request("GET", "/api", "Host: a", "Authorization: Bearer "+parts[0]+"."+breaker+parts[1]+"."+parts[2])
			refused(t, "line end within", h.one(t, text), 400, "request_malformed")
		}
		deny(t, "percent-encoded newline", parts[0]+"%0A."+parts[1]+"."+parts[2], "credential_malformed")
		h.untouched(t, "serialisation")
	})
	t.Run("header", func(t *testing.T) {
		for _, header := range []string{
			`{"alg":"none","alg":"ES256","typ":"at+jwt","kid":"ec"}`, `{"alg":"ES256","alg":"none","typ":"at+jwt","kid":"ec"}`, `{"alg":"ES256","\u0061lg":"ES256","typ":"at+jwt","kid":"ec"}`,
			`{"alg":"ES256","typ":"at+jwt","typ":"at+jwt","kid":"ec"}`, `{"alg":"ES256","typ":"at+jwt","kid":"ec","x":{"a":1,"a":2}}`,
			`{"alg":"ES256","typ":"at+jwt","kid":"ec","crit":["exp"]}`, `{"alg":"ES256","typ":"at+jwt","kid":"ec","crit":[]}`, `{"alg":"ES256","typ":"at+jwt","kid":"ec","crit":null}`, `{"alg":"ES256","typ":"at+jwt","kid":"ec","crit":["b64"],"b64":false}`,
			`{"alg":"ES256","typ":"at+jwt","kid":"ec","b64":true}`, `{"alg":"ES256","typ":"at+jwt","kid":"ec","zip":"DEF"}`, `{"alg":"ES256","typ":"at+jwt","kid":"ec","cty":"JWT"}`, `{"alg":"ES256","typ":"at+jwt","kid":"ec","enc":"A128GCM"}`,
			`{"alg":"ES256","typ":"JWT","kid":"ec"}`, `{"alg":"ES256","typ":"id_token+jwt","kid":"ec"}`, `{"alg":"ES256","kid":"ec"}`, `{"alg":"ES256","typ":"","kid":"ec"}`, `{"alg":"ES256","typ":null,"kid":"ec"}`, `{"alg":"ES256","typ":["at+jwt"],"kid":"ec"}`,
			`{"alg":"ES256","typ":"dpop+jwt","kid":"ec"}`, `{"alg":"ES256","typ":"logout+jwt","kid":"ec"}`, `{"alg":"ES256","typ":"at+jwt\u0000","kid":"ec"}`, `{"alg":"ES256","typ":"text/at+jwt","kid":"ec"}`,
			`{"alg":"ES256","typ":"at+jwt","kid":1}`, `{"alg":"ES256","typ":"at+jwt","kid":null}`, `{"alg":"ES256","typ":"at+jwt","kid":["ec"]}`, `{"alg":"ES256","typ":"at+jwt","kid":{"ec":1}}`,
			`{"alg":"ES256","typ":"at+jwt","kid":"ec","x":"` + strings.Repeat("a", 2100) + `"}`, `{"alg":"ES256","typ":"at+jwt","kid":"ec","x":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}`,
		} {
			deny(t, header, ec.sign(header, evil), "credential_malformed")
		}
		for _, kid := range []string{"../../../../dev/null", "/etc/passwd", "' OR '1'='1", "ec' UNION SELECT 'x", "ec\x00", "EC", "ec ", " ec", "", "file:///dev/null", "http://127.0.0.1/k", "$(id)", "ec|cat /etc/passwd", "\u0435c", strings.Repeat("k", 1000), "-1", "0"} {
			deny(t, "kid "+kid, ec.sign(ec.header("kid", kid), evil), "token_bad_signature")
		}
		accept(t, "typ is a media type", "/api", ec.sign(ec.header("typ", "application/AT+JWT"), claims()))
	})
	t.Run("claims", func(t *testing.T) {
		now := time.Now().Unix()
		for _, c := range []struct {
			what   string
			claims any
			reason string
		}{
			{"no exp", claims("exp", omit), "credential_malformed"}, {"exp as string", claims("exp", fmt.Sprint(now+600)), "credential_malformed"}, {"exp null", claims("exp", nil), "credential_malformed"},
			{"exp true", claims("exp", true), "credential_malformed"}, {"exp array", claims("exp", []int64{now + 600}), "credential_malformed"}, {"exp negative", claims("exp", -1), "credential_malformed"}, {"exp beyond all", claims("exp", json.Number("1e400")), "credential_malformed"},
			{"exp in the year 40000", claims("exp", json.Number("1200000000000")), "credential_malformed"}, {"exp far off", claims("exp", now+365*86400), "credential_malformed"}, {"exp zero", claims("exp", 0), "token_expired"},
			{"expired", claims("iat", now-700, "exp", now-100), "token_expired"}, {"expired by one second past the skew", claims("iat", now-700, "exp", now-31), "token_expired"},
			{"no iat", claims("iat", omit), "credential_malformed"}, {"iat as string", claims("iat", fmt.Sprint(now)), "credential_malformed"}, {"iat ahead", claims("iat", now+300), "token_not_yet_valid"},
			{"nbf ahead", claims("nbf", now+300), "token_not_yet_valid"}, {"nbf as string", claims("nbf", "0"), "credential_malformed"}, {"nbf null", claims("nbf", nil), "credential_malformed"},
			{"no aud", claims("aud", omit), "token_wrong_audience"}, {"aud null", claims("aud", nil), "credential_malformed"}, {"aud object", claims("aud", map[string]any{"https://api.example": true}), "credential_malformed"},
			{"aud number", claims("aud", 1), "credential_malformed"}, {"aud empty", claims("aud", ""), "token_wrong_audience"}, {"aud empty array", claims("aud", []string{}), "token_wrong_audience"}, {"aud of mixed", claims("aud", []any{"https://api.example", 1}), "credential_malformed"},
			{"aud nested", claims("aud", []any{[]string{"https://api.example"}}), "credential_malformed"}, {"aud of another", claims("aud", "https://other.example"), "token_wrong_audience"}, {"aud prefix", claims("aud", "https://api.example.evil"), "token_wrong_audience"},
			{"aud with slash", claims("aud", "https://api.example/"), "token_wrong_audience"}, {"aud case", claims("aud", "https://API.example"), "token_wrong_audience"}, {"aud list in a string", claims("aud", "https://api.example https://x"), "token_wrong_audience"},
			{"no iss", claims("iss", omit), "token_wrong_issuer"}, {"iss null", claims("iss", nil), "credential_malformed"}, {"iss array", claims("iss", []string{extIssuer}), "credential_malformed"}, {"iss with slash", claims("iss", extIssuer+"/"), "token_wrong_issuer"},
			{"iss case", claims("iss", "https://IDP.example"), "token_wrong_issuer"}, {"iss of another issuer", claims("iss", "https://shared.example"), "token_wrong_issuer"}, {"iss blank", claims("iss", extIssuer+" "), "token_wrong_issuer"},
			{"ID token by nonce", claims("nonce", "n"), "credential_malformed"}, {"ID token by at_hash", claims("at_hash", "x"), "credential_malformed"}, {"ID token by token_use", claims("token_use", "id"), "credential_malformed"},
			{"ID token by typ", claims("typ", "ID"), "credential_malformed"}, {"refresh token", claims("typ", "Refresh"), "credential_malformed"}, {"logout token", claims("events", map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}), "credential_malformed"},
			{"bound by DPoP", claims("cnf", map[string]any{"jkt": "x"}), "credential_malformed"}, {"bound to a certificate", claims("cnf", map[string]any{"x5t#S256": b64(make([]byte, 32))}), "credential_malformed"}, {"cnf null", claims("cnf", nil), "credential_malformed"},
			{"duplicate claim", `{"iss":"` + extIssuer + `","sub":"a","sub":"mallory","aud":"https://api.example","iat":` + fmt.Sprint(now) + `,"exp":` + fmt.Sprint(now+60) + `}`, "credential_malformed"},
			{"duplicate exp", `{"iss":"` + extIssuer + `","exp":1,"aud":"https://api.example","iat":` + fmt.Sprint(now) + `,"exp":` + fmt.Sprint(now+60) + `}`, "credential_malformed"},
			{"scope as object", claims("scope", map[string]any{"admin": true}), "credential_malformed"}, {"scope with numbers", claims("scope", []any{"a", 1}), "credential_malformed"}, {"roles as number", claims("roles", 7), "credential_malformed"},
			{"roles with null", claims("roles", []any{nil}), "credential_malformed"}, {"sub as number", claims("sub", 7), "credential_malformed"}, {"sub null", claims("sub", nil), "credential_malformed"}, {"sub with NUL", claims("sub", "a\x00b"), "credential_malformed"},
			{"no object", `["x"]`, "credential_malformed"}, {"null", `null`, "credential_malformed"}, {"broken", `{"iss":`, "credential_malformed"}, {"trailing", `{} {}`, "credential_malformed"},
			{"deep", `{"x":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`, "credential_malformed"}, {"not UTF-8", "{\"sub\":\"\xff\"}", "credential_malformed"},
		} {
			deny(t, c.what, ec.sign(ec.header(), c.claims), c.reason)
		}
		accept(t, "an audience among others", "/api", ec.token("aud", []string{"https://x", "https://api.example"}))
		threatRules(t, h, ec)
		accept(t, "expired within the skew", "/api", ec.token("iat", now-100, "exp", now-5))
	})
}

// Rules about claims of other types and sizes than were meant deny.
func threatRules(t *testing.T, h *harness, k keyPair) {
	for _, c := range []struct {
		path, claim string
		value       any
		allowed     bool
	}{
		{"/account", "account", json.Number("9007199254740993"), true}, {"/account", "account", json.Number("9007199254740992"), false}, {"/account", "account", json.Number("9007199254740994"), false},
		{"/account", "account", json.Number("9.007199254740993e15"), true}, {"/account", "account", "9007199254740993", false}, {"/account", "account", []any{json.Number("9007199254740993")}, false}, {"/account", "account", nil, false}, {"/account", "account", omit, false},
		{"/account", "account", json.Number("9007199254740993000000000000000000"), false}, {"/account", "account", map[string]any{"account": json.Number("9007199254740993")}, false},
		{"/level", "level", 3, true}, {"/level", "level", 2, false}, {"/level", "level", "3", false}, {"/level", "level", true, false}, {"/level", "level", nil, false}, {"/level", "level", []int{3}, false}, {"/level", "level", json.Number("2.999999999999999"), false}, {"/level", "level", json.Number("-1e300"), false},
		{"/role", "roles", []string{"admin"}, true}, {"/role", "roles", "admin", true}, {"/role", "roles", []string{"Admin"}, false}, {"/role", "roles", []string{"admin "}, false}, {"/role", "roles", "user admin", false}, {"/role", "roles", "user,admin", false}, {"/role", "roles", []string{"adm\u0131n"}, false}, {"/role", "roles", nil, false}, {"/role", "Roles", []string{"admin"}, false},
	} {
		what := fmt.Sprintf("%s with %s %v", c.path, c.claim, c.value)
		a := h.get(0, c.path, authorization(k.token(c.claim, c.value))...)
		if c.allowed {
			if a.Status != 200 {
				t.Errorf("%s: %d %s", what, a.Status, a.Body)
			}
			h.up.take()
			continue
		}
		if a.Reason != "rule_denied" && a.Reason != "expression_error" || a.Status != 403 {
			t.Errorf("%s: %d %s", what, a.Status, a.Body)
		}
		refused(t, what, a, 403, a.Reason)
		h.untouched(t, what)
	}
}

// withUnusedBits flips a bit of the last character that no byte comes of.
func withUnusedBits(part, before string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	at := strings.IndexByte(alphabet, part[len(part)-1])
	return before + part[:len(part)-1] + alphabet[at^1:at^1+1]
}

// jwksServer serves a set that tests change, and counts who asks.
type jwksServer struct {
	*httptest.Server
	set   atomic.Pointer[string]
	asked atomic.Int64
}

func newJWKS(t *testing.T, keys ...keyPair) *jwksServer {
	s := &jwksServer{}
	s.rotate(keys...)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.asked.Add(1)
		_, _ = w.Write([]byte(*s.set.Load()))
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *jwksServer) rotate(keys ...keyPair) {
	set := jwks(keys...)
	s.set.Store(&set)
}

// A storm of unknown kids costs the identity provider one fetch: the first one
// was just made, so none more comes within 30 s; a known key goes on working.
func TestThreatUnknownKidStorm(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 2, AllowLoopbackJWKS: true})
	k := newES256(t, "k1")
	idp := newJWKS(t, k)
	h.apply(fmt.Sprintf("apiVersion: portcullis.dev/v1\nkind: Issuer\nmetadata: {name: ext}\nspec: {issuer: %q, jwksUri: %q}\n", extIssuer, idp.URL+"/jwks") +
		guarded("api", "ext", "https://api.example"))
	for node := range 2 {
		h.until("the keys are fetched", func() error {
			if a := h.get(node, "/api", authorization(k.token())...); a.Status != 200 {
				return fmt.Errorf("%+v", a)
			}
			return nil
		})
	}
	h.up.take()
	before := idp.asked.Load()
	other := newES256(t, "other")
	var storm sync.WaitGroup
	for worker := range 8 {
		storm.Go(func() {
			for i := range 100 {
				a, err := h.try(worker%2, "GET", "/api", "", authorization(other.sign(other.header("kid", fmt.Sprintf("k-%d-%d", worker, i)), claims()))...)
				if fault := refusalFault(a, 401, "token_bad_signature"); err != nil || fault != "" {
					t.Errorf("unknown kid: %s %v", fault, err)
					return
				}
			}
		})
	}
	storm.Wait()
	h.untouched(t, "unknown kids")
	if a := h.get(0, "/api", authorization(k.token())...); a.Status != 200 {
		t.Errorf("a good token after the storm: %+v", a)
	}
	if asked := idp.asked.Load() - before; asked > 1 {
		t.Errorf("800 unknown kids made %d fetches, want at most 1 in 30 s", asked)
	}
}

// One token is one verdict about its signature, and nothing more: every route
// asks its own questions, and every hit asks again what can have changed.
func TestThreatsOfCachedVerdicts(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 2})
	k, twin, other := newES256(t, "k1"), newES256(t, "k2"), newES256(t, "k1")
	h.apply(issuerWith(k) + fmt.Sprintf(`
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: second}
spec: {issuer: 'https://second.example', jwks: %q}
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: same-name}
spec: {issuer: %q, jwks: %q}
`, jwks(twin), extIssuer, jwks(other)) +
		guarded("api", "ext", "https://api.example") +
		guarded("otheraud", "ext", "https://other.example") +
		guarded("scoped", "ext", "https://api.example", ", {authorize: {rules: [{name: r, scopes: [orders:write]}]}}") +
		guarded("second", "second", "https://api.example") +
		guarded("samename", "same-name", "https://api.example") +
		guarded("ruled", "ext", "https://api.example", `, {authorize: {rules: [{name: r, require: "request.headers['x-tenant'] == 'a'"}]}}`))
	token := k.token("scope", "orders:read")
	get := func(path string, fields ...string) answer {
		return h.get(0, path, append(fields, authorization(token)...)...)
	}
	for round := range 3 { // the first is a miss, the others are hits
		if a := get("/api"); a.Status != 200 {
			t.Fatalf("round %d: %+v", round, a)
		}
		h.up.take()
		refused(t, "another audience", get("/otheraud"), 401, "token_wrong_audience")
		refused(t, "another scope", get("/scoped"), 403, "scope_missing")
		refused(t, "another issuer", get("/second"), 401, "token_wrong_issuer")
		refused(t, "an issuer of the same name with other keys", get("/samename"), 401, "token_bad_signature")
		refused(t, "a rule about another header", get("/ruled", "X-Tenant", "b"), 403, "rule_denied")
		h.untouched(t, "another route")
		if a := get("/ruled", "X-Tenant", "a"); a.Status != 200 {
			t.Errorf("the rule holds: %+v", a)
		}
		h.up.take()
	}
	if challenge := get("/scoped").Header.Get("WWW-Authenticate"); !strings.Contains(challenge, `error="insufficient_scope"`) || !strings.Contains(challenge, `scope="orders:write"`) {
		t.Errorf("challenge %q (RFC 6750, 3.1)", challenge)
	}
	// Rotated between hits: the withdrawn key's verdicts are gone with it.
	h.apply(issuerWith(twin))
	refused(t, "after the rotation", get("/api"), 401, "token_bad_signature")
	if a := h.get(0, "/api", authorization(twin.token())...); a.Status != 200 {
		t.Errorf("the new key: %+v", a)
	}
	h.apply(issuerWith(twin, k))
	if a := get("/api"); a.Status != 200 {
		t.Errorf("the key is back: %+v", a)
	}
	h.up.take()
	// The same kid, another key.
	h.apply(issuerWith(other))
	refused(t, "the kid's key was replaced", get("/api"), 401, "token_bad_signature")
	h.apply(issuerWith(k))
	if a := get("/api"); a.Status != 200 {
		t.Errorf("%+v", a)
	}
	// The profile changes between hits.
	h.apply(fmt.Sprintf("apiVersion: portcullis.dev/v1\nkind: Issuer\nmetadata: {name: ext}\nspec: {issuer: %q, jwks: %q, algorithms: [RS256, ES256], types: [JWT]}\n", extIssuer, jwks(k)))
	refused(t, "the issuer's types changed", get("/api"), 401, "credential_malformed")
	h.apply(fmt.Sprintf("apiVersion: portcullis.dev/v1\nkind: Issuer\nmetadata: {name: ext}\nspec: {issuer: %q, jwks: %q, maxLifetime: 60s}\n", extIssuer, jwks(k)))
	refused(t, "the issuer's longest lifetime changed", get("/api"), 401, "credential_malformed")
	h.apply(issuerWith(k))
	// Revoked between hits, on the node that has it cached and on the other.
	if a := get("/api"); a.Status != 200 {
		t.Errorf("%+v", a)
	}
	if _, err := h.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Subject: "alice"}); err != nil {
		t.Fatal(err)
	}
	for node := range 2 {
		h.until("revoked", func() error {
			if fault := refusalFault(h.get(node, "/api", authorization(token)...), 401, "token_revoked"); fault != "" {
				return fmt.Errorf("node %d: %s", node, fault)
			}
			return nil
		})
	}
	h.up.take()
	refused(t, "still revoked", get("/api"), 401, "token_revoked")
	refused(t, "still for another audience", get("/otheraud"), 401, "token_wrong_audience")
	h.untouched(t, "revoked")
}
