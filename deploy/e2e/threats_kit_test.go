package e2e_test

import (
	"bufio"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// problemBody is the body of a refusal (RFC 9457), and nothing else.
type problemBody struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Reason    string `json:"reason"`
	RequestID string `json:"request_id"`
	TraceID   string `json:"trace_id"`
}

// refusalFault says what about an answer is not as every refusal's is; "" when
// nothing. A status of 0 is any of 4xx and 5xx.
func refusalFault(a answer, status int, reason string) string {
	var p problemBody
	strict := json.NewDecoder(strings.NewReader(a.Body))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&p); err != nil {
		return fmt.Sprintf("status %d, body %.200q is no problem: %v", a.Status, a.Body, err)
	}
	switch {
	case p.Reason != reason:
		return fmt.Sprintf("reason %q (%d, %q), want %q", p.Reason, a.Status, p.Detail, reason)
	case status != 0 && a.Status != status || a.Status < 400:
		return fmt.Sprintf("status %d, want %d", a.Status, status)
	case p.Status != a.Status:
		return fmt.Sprintf("the body says %d, the answer %d", p.Status, a.Status)
	case a.Header.Get("Content-Type") != "application/problem+json":
		return "content type " + a.Header.Get("Content-Type")
	case p.Type != "https://portcullis.dev/problems/"+reason || p.Title == "" || p.Detail == "":
		return "incomplete: " + a.Body
	case p.RequestID == "" || p.RequestID != a.Header.Get("X-Request-Id"):
		return fmt.Sprintf("request id %q in the body, %q in the header", p.RequestID, a.Header.Get("X-Request-Id"))
	case len(p.TraceID) != 32:
		return fmt.Sprintf("trace id %q", p.TraceID)
	case a.Header.Get("Cache-Control") != "no-store":
		return "a refusal that may be cached"
	case a.Status == 401 && len(a.Header.Values("WWW-Authenticate")) == 0:
		return "401 without WWW-Authenticate (RFC 9110, 15.5.2)"
	}
	return ""
}

// refused fails unless the answer is a whole refusal for the reason.
func refused(t *testing.T, what string, a answer, status int, reason string) {
	t.Helper()
	if fault := refusalFault(a, status, reason); fault != "" {
		t.Errorf("%.120s: %s", what, fault)
	}
}

// untouched fails when anything has reached the upstream.
func (h *harness) untouched(t *testing.T, what string) {
	t.Helper()
	for _, s := range h.up.take() {
		t.Errorf("%.120s: the upstream saw %s %s %v", what, s.Method, s.Target, s.Header)
	}
}

// replies sends bytes to node i and returns the answers that come back before it
// closes.
func (h *harness) replies(t *testing.T, i int, text string) []answer {
	t.Helper()
	conn, err := net.Dial("tcp", h.Addresses()[i])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	// The connection stays open both ways: one that is shut counts as left.
	_ = conn.SetDeadline(time.Now().Add(patience))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.WriteString(conn, text) // refused early, the rest may not fit
	}()
	got, err := io.ReadAll(conn)
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%.100q: the node neither answers nor closes", text)
	}
	_ = conn.Close()
	<-sent
	return parseReplies(t, string(got))
}

func parseReplies(t *testing.T, text string) []answer {
	t.Helper()
	var all []answer
	reader := bufio.NewReader(strings.NewReader(text))
	for {
		if _, err := reader.Peek(1); err != nil {
			return all
		}
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Errorf("answer %d is none: %v in %.300q", len(all), err, text)
			return all
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Errorf("answer %d is cut: %v", len(all), err)
		}
		if resp.Close {
			resp.Header.Set("Connection", "close")
		}
		all = append(all, answer{Status: resp.StatusCode, Header: resp.Header, Body: string(body)})
	}
}

// one is replies for a request that gets exactly one answer.
func (h *harness) one(t *testing.T, text string) answer {
	t.Helper()
	all := h.replies(t, 0, text)
	if len(all) != 1 {
		t.Errorf("%.200q: %d answers", text, len(all))
		return answer{Header: http.Header{}}
	}
	return all[0]
}

// request writes a request by hand: its fields follow the target as they are.
func request(method, target string, fields ...string) string {
	return method + " " + target + " HTTP/1.1\r\nConnection: close\r\n" + strings.Join(append(fields, "", ""), "\r\n")
}

// keyPair signs as an issuer would.
type keyPair struct {
	kid, alg string
	private  crypto.Signer
}

func newES256(t *testing.T, kid string) keyPair {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{kid, "ES256", k}
}

func newRS256(t *testing.T, kid string) keyPair {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{kid, "RS256", k}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func encode(v any) string {
	switch v := v.(type) {
	case string: // JSON as it is
		return b64([]byte(v))
	default:
		data, err := json.Marshal(v)
		if err != nil {
			panic(err) // the tests' own literals
		}
		return b64(data)
	}
}

// jwk is the public key as a JWK (RFC 7517).
func (k keyPair) jwk() map[string]any {
	m := map[string]any{"kid": k.kid, "use": "sig", "alg": k.alg}
	switch public := k.private.Public().(type) {
	case *ecdsa.PublicKey:
		raw, err := public.Bytes()
		if err != nil {
			panic(err) // a key that was just generated
		}
		m["kty"], m["crv"], m["x"], m["y"] = "EC", "P-256", b64(raw[1:33]), b64(raw[33:])
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", b64(public.N.Bytes()), b64(big.NewInt(int64(public.E)).Bytes())
	}
	return m
}

func jwks(keys ...keyPair) string {
	set := struct {
		Keys []map[string]any `json:"keys"`
	}{Keys: []map[string]any{}}
	for _, k := range keys {
		set.Keys = append(set.Keys, k.jwk())
	}
	data, err := json.Marshal(set)
	if err != nil {
		panic(err) // plain strings
	}
	return string(data)
}

// signature of a JWS signing input (RFC 7518, 3).
func (k keyPair) signature(signed string) []byte {
	sum := sha256.Sum256([]byte(signed))
	switch private := k.private.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, private, sum[:])
		if err != nil {
			panic(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case *rsa.PrivateKey:
		sig, err := rsa.SignPKCS1v15(rand.Reader, private, crypto.SHA256, sum[:])
		if err != nil {
			panic(err)
		}
		return sig
	}
	panic("a key of neither kind")
}

// sign makes a compact JWS; header and claims are JSON text or maps.
func (k keyPair) sign(header, claims any) string {
	signed := encode(header) + "." + encode(claims)
	return signed + "." + b64(k.signature(signed))
}

// hs256 signs with a symmetric key.
func hs256(key []byte, header, claims any) string {
	signed := encode(header) + "." + encode(claims)
	m := hmac.New(sha256.New, key)
	m.Write([]byte(signed))
	return signed + "." + b64(m.Sum(nil))
}

func (k keyPair) header(extra ...any) map[string]any {
	return with(map[string]any{"alg": k.alg, "typ": "at+jwt", "kid": k.kid}, extra...)
}

// with adds pairs of name and value; a value of omit removes the name.
func with(m map[string]any, extra ...any) map[string]any {
	for i := 0; i+1 < len(extra); i += 2 {
		if extra[i+1] == omit {
			delete(m, extra[i].(string))
		} else {
			m[extra[i].(string)] = extra[i+1]
		}
	}
	return m
}

const omit = "\x00omit"

const extIssuer = "https://idp.example"

// claims of a good token of the issuer ext.
func claims(extra ...any) map[string]any {
	now := time.Now().Unix()
	return with(map[string]any{
		"iss": extIssuer, "sub": "alice", "aud": "https://api.example", "iat": now, "exp": now + 600, "jti": rand.Text(),
	}, extra...)
}

// token is a good one, but for what extra changes of its claims.
func (k keyPair) token(extra ...any) string { return k.sign(k.header(), claims(extra...)) }

// authorization is the field line of a bearer token.
func authorization(token string) []string { return []string{"Authorization", "Bearer " + token} }

// issuerWith declares the issuer ext with keys of its own.
func issuerWith(keys ...keyPair) string {
	return fmt.Sprintf(`
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: ext}
spec: {issuer: %q, jwks: %q}
`, extIssuer, jwks(keys...))
}

// routeYAML declares a route by the lines of its spec.
func routeYAML(name string, spec ...string) string {
	return fmt.Sprintf("\n---\napiVersion: portcullis.dev/v1\nkind: Route\nmetadata: {name: %s}\nspec:\n  backends: [{upstream: up}]\n  %s\n",
		name, strings.Join(spec, "\n  "))
}

// names of the header fields that reached an upstream, lower-case and sorted.
func (s seen) names() []string {
	var all []string
	for name := range s.Header {
		all = append(all, strings.ToLower(name))
	}
	slices.Sort(all)
	return all
}

// freePort returns a loopback address at which nothing listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// answer sets who answers in the recorder's place; nil: itself.
func (r *recorder) answer(handle http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handle = handle
}
