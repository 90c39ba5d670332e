package e2e_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/deploy/cluster"
)

// threatRoutes: all is public but /admin, which is behind the issuer ext.
func threatRoutes(k keyPair) string {
	jwt := "policies: [{jwt: {issuers: [ext], audiences: [https://api.example]}}]"
	return issuerWith(k) +
		routeYAML("open", "public: true", "matches: [{path: {prefix: /}}]") +
		routeYAML("admin", "matches: [{path: {prefix: /admin}}]", jwt) +
		routeYAML("exact", "matches: [{path: {exact: /exact}}]", jwt) +
		routeYAML("person", "matches: [{path: {template: '/people/{id}/secrets'}}]", jwt) +
		routeYAML("told", "public: true", `matches: [{path: {prefix: /admin/told}, headers: [{name: x-told, regex: "in.ide"}]}, {path: {prefix: /admin/told}, query: [{name: told, exact: "yes"}]}]`) +
		routeYAML("hosted", "hostnames: [admin.example]", jwt) +
		routeYAML("wild", "hostnames: ['*.wild.example']", jwt)
}

func TestThreatsOfHTTP(t *testing.T) {
	h := start(t, cluster.Config{})
	k := newES256(t, "k1")
	h.apply(threatRoutes(k))
	for _, group := range []struct {
		name string
		run  func(*testing.T, *harness, keyPair)
	}{
		{"paths", threatPaths},
		{"targets", threatTargets},
		{"predicates", threatPredicates},
		{"header aliases", threatAliases},
		{"identity headers", threatIdentity},
		{"forwarded", threatForwarded},
		{"hop by hop", threatHopByHop},
		{"probes", threatProbes},
		{"case", threatCase},
		{"smuggling", threatSmuggling},
		{"sizes", threatSizes},
		{"idle connections", threatIdle},
	} {
		t.Run(group.name, func(t *testing.T) {
			h.up.take()
			group.run(t, h, k)
		})
	}
}

// ambiguousPaths are those that some server may read as others.
var ambiguousPaths = []string{
	"//admin", "///admin", "/x//admin", "/./admin", "/x/./admin", "/x/../admin", "/../admin", "/x/..", "/x/.", "/..",
	"/x/..;/admin", "/..;/admin", "/.;/admin", "/;/admin", "/admin;", "/admin;x=y", "/admin;/", "/x;/../admin", "/x/%2e%2e%3b/admin",
	"/%2e/admin", "/%2E/admin", "/x/%2e%2e/admin", "/x/.%2e/admin", "/x/%2E./admin", "/x/%2e%2e%2fadmin",
	"/%2fadmin", "/x%2fadmin", "/x%2Fadmin", "/admin%2f", "/%2f%2fadmin", "/%5cadmin", "/x%5C..%5Cadmin", "/x\\..\\admin", "\\admin", "/\\admin",
	"/%252fadmin", "/%252e%252e/admin", "/x%255cadmin", "/%25%32%66admin", "/%2561dmin", "/x%25%35%63",
	"/admin%00", "/%00/admin", "/admin%00.html", "/admin\x00", "/admin%0a", "/admin%0d%0aX-User:%20root", "/admin%09", "/admin\x09", "/admin%7f", "/admin%1f",
	"/%c0%ae%c0%ae/admin", "/%c0%afadmin", "/%e0%80%af", "/%f0%80%80%af", "/%c1%9cadmin", "/%ff", "/%ed%a0%80", "/%c2%85", "/\xc3\xa9", "/\xff",
	"/%", "/%2", "/%zz", "/%u002fadmin", "/%u2215admin", "/admin%", "/ad min", "/admin\"", "/admin<", "/admin{", "/admin`",
	"/x/....//admin/../..", "/admin/..", "/admin/../x", "/people//secrets", "/people/../secrets", "/exact/.", "/exact//",
}

// A path that some server may read as another is refused, wherever it leads.
func threatPaths(t *testing.T, h *harness, _ keyPair) {
	for _, path := range ambiguousPaths {
		a := h.one(t, request("GET", path, "Host: a"))
		refused(t, path, a, 400, "request_malformed")
		h.untouched(t, path)
	}
	// Spellings of a protected path that are safe to read are read as that path.
	for _, path := range []string{"/%61dmin", "/admi%6E", "/%61%64%6d%69%6e/x", "/admin?", "/admin?x=/public", "/admin/", "/admin/%41",
		"/%65xact", "/exact?/public", "/people/7/secrets", "/people/%37/secrets", "/people/a%20b/s%65crets", "/people/%3B/secrets"} {
		refused(t, path, h.one(t, request("GET", path, "Host: a")), 401, "credential_missing")
		h.untouched(t, path)
	}
	// What passes reaches the upstream as the policies saw it: canonical, query untouched.
	for path, want := range map[string]string{
		"/": "/", "/%41b": "/Ab", "/a%7eb": "/a~b", "/a%2Db": "/a-b", "/a%c3%a9": "/a%C3%A9", "/a%20b": "/a%20b", "/a|b": "/a%7Cb", "/a%3bb": "/a%3Bb",
		"/adminx": "/adminx", "/xadmin": "/xadmin", "/x/admin": "/x/admin", "/Admin": "/Admin", "/a?x=%2e%2e/&y=//": "/a?x=%2e%2e/&y=//", "/a?": "/a",
		"/...": "/...", "/.a": "/.a", "/a./b": "/a./b", "/a%25": "/a%25", "/a/": "/a/", "/a%23b": "/a%23b", "/a%3Fb": "/a%3Fb", "/EXACT": "/EXACT", "/exact/": "/exact/",
		"/people/secrets": "/people/secrets", "/people/1/2/secrets": "/people/1/2/secrets",
	} {
		a := h.one(t, request("GET", path, "Host: a"))
		got := h.up.take()
		if a.Status != 200 || len(got) != 1 || strings.TrimSuffix(got[0].Target, "?") != want {
			t.Errorf("%s: status %d %s, the upstream saw %v, want %s", path, a.Status, a.Body, got, want)
		}
	}
}

// Fragments, queries and the other forms of a request target.
func threatTargets(t *testing.T, h *harness, k keyPair) {
	for _, target := range []string{
		"/admin#", "/admin#/public", "/public#/admin", "#", "#/admin", "/x?y#z", "/x?#", "svc/Method", "admin", "*", "", "?", "?/admin", "a:80", "127.0.0.1:80",
		"http:/admin", "http:admin", "http://", "http:///admin", "http://a", "//a/admin", "ftp://b/admin", "HTTP://other/admin", "http://other/admin", "http://b:81/admin",
		"http://u@b/admin", "http://b@other/admin", "http://b#/admin", "http://b\\admin", "https://b:80/admin", "http://b/../admin", "http://b//admin", "file:///etc/passwd",
		"http://b /admin", "/x?a=%", "/x?a=%zz", "/x?" + strings.Repeat("a=1&", 1000) + "a=1",
	} {
		if target == "http://a" {
			continue // see below: with Host a it is the same authority
		}
		a := h.one(t, request("GET", target, "Host: b"))
		refused(t, target, a, 400, "request_malformed")
		h.untouched(t, target)
	}
	for _, target := range []string{"/admin?#", "/admin?%23", "http://b/admin", "HTTP://B/admin", "http://b:80/admin", "/admin?/public", "/admin?/../public", "/admin?x;y"} {
		a := h.one(t, request("GET", target, "Host: b"))
		if strings.Contains(target, "#") {
			refused(t, target, a, 400, "request_malformed")
		} else {
			refused(t, target, a, 401, "credential_missing")
		}
		h.untouched(t, target)
	}
	// A public pattern in the query or after %23 is not in the path.
	refused(t, "template", h.one(t, request("GET", "/people/x%23/secrets", "Host: b")), 401, "credential_missing")
	// CONNECT and TRACE are refused, OPTIONS * has no route of its own to slip by.
	refused(t, "CONNECT", h.one(t, request("CONNECT", "b:80", "Host: b:80")), 0, "request_malformed")
	refused(t, "TRACE", h.one(t, request("TRACE", "/", "Host: b")), 501, "request_malformed")
	h.untouched(t, "CONNECT and TRACE")
	// The absolute form reaches the upstream in origin form and with the one authority.
	a := h.one(t, request("GET", "http://B/admin/x?y=1", "Host: b", "Authorization: Bearer "+k.token()))
	if got := h.up.take(); a.Status != 200 || len(got) != 1 || got[0].Target != "/admin/x?y=1" || !strings.EqualFold(got[0].Header.Get("X-Forwarded-Host"), "b") {
		t.Errorf("absolute form: %d %s, %v", a.Status, a.Body, got)
	}
}

// What selects a public route is matched whole, and byte for byte.
func threatPredicates(t *testing.T, h *harness, _ keyPair) {
	for _, line := range []string{"X-Told: inside", "x-told: in.ide", "X-Told: other\r\nX-Told: inside"} {
		if a := h.one(t, request("GET", "/admin/told", "Host: a", line)); a.Status != 200 {
			t.Errorf("%q: %d %s", line, a.Status, a.Body)
		}
	}
	for _, target := range []string{"/admin/told?told=yes", "/admin/told?a&told=%79es", "/admin/told?t%6fld=yes"} {
		if a := h.one(t, request("GET", target, "Host: a")); a.Status != 200 {
			t.Errorf("%q: %d %s", target, a.Status, a.Body)
		}
	}
	h.up.take()
	for _, line := range []string{"X-Told: insideX", "X-Told: Xinside", "X-Told: in", "X-Told: INSIDE", "X-Told: inside, other", "X_Told: inside", "X.Told: inside", "X-Told2: inside", "Connection: x-told\r\nX-Told: inside"} {
		refused(t, line, h.one(t, request("GET", "/admin/told", "Host: a", line)), 401, "credential_missing")
	}
	for _, target := range []string{"/admin/told?told=yesno", "/admin/told?TOLD=yes", "/admin/told?told=YES", "/admin/told?xtold=yes", "/admin/told?told[]=yes", "/admin/told?x=told=yes", "/admin/told?x;told=yes", "/admin/told?told=", "/admin/told?told", "/admin/told%3Ftold=yes", "/admin/toldX?told=yes", "/admin/x?told=yes"} {
		refused(t, target, h.one(t, request("GET", target, "Host: a")), 401, "credential_missing")
	}
	h.untouched(t, "predicates")
}

// Names that CGI, WSGI and their like turn into one another never pass.
func threatAliases(t *testing.T, h *harness, k keyPair) {
	lines := []string{"X_Portcullis_Subject: root", "X-Portcullis_Subject: root", "x.portcullis.subject: root", "x.user: root", "X_User: root", "X_Forwarded_For: 9.9.9.9",
		"CONTENT_LENGTH: 1", "Transfer_Encoding: chunked", "X~User: root", "X!User: root", "X'User: root", "X_API_Key: x", "authorization_: x", "X-User: one", "x-uSER: two"}
	a := h.one(t, request("GET", "/admin/x", append(lines, "Host: a", "Authorization: Bearer "+k.token())...))
	got := h.up.take()
	if a.Status != 200 || len(got) != 1 {
		t.Fatalf("status %d %s, the upstream saw %v", a.Status, a.Body, got)
	}
	for name, values := range got[0].Header {
		if strings.ContainsAny(name, "_.~!'") {
			t.Errorf("the alias %s: %q passed", name, values)
		}
	}
	// Duplicates of an end-to-end field stay what they are: two values, in order.
	if values := got[0].Header.Values("X-User"); len(values) != 2 || values[0] != "one" || values[1] != "two" {
		t.Errorf("X-User %q", values)
	}
	// A credential under an alias is none, and a second one under any case is one too many.
	for _, line := range []string{"X-Authorization: Bearer ", "Authorization_: Bearer ", "Proxy-Authorization: Bearer "} {
		refused(t, line, h.one(t, request("GET", "/admin", "Host: a", line+k.token())), 401, "credential_missing")
	}
	refused(t, "twice", h.one(t, request("GET", "/admin", "Host: a", "Authorization: Bearer "+k.token(), "aUTHORIZATION: Bearer "+k.token())), 400, "credential_duplicate")
	for _, line := range []string{"Authorization : Bearer x", " Authorization: x", "Authorization: a\r\n b", "Authori\x00zation: x", "Authorization: a\x00", "Host : a", "X-User\t: root"} {
		refused(t, line, h.one(t, request("GET", "/admin", "Host: a", line)), 400, "request_malformed")
	}
	h.untouched(t, "aliases")
}

// identityFields are every one by which an upstream is told who calls.
var identityFields = []string{"X-Portcullis-Auth-Method", "X-Portcullis-Subject", "X-Portcullis-Client", "X-Portcullis-Issuer",
	"X-Portcullis-Scopes", "X-Portcullis-Roles", "X-Portcullis-Groups", "X-Portcullis-Anything-Later"}

// What a client says about who it is never arrives: not where nobody
// authenticates, not with a failing credential, and not where the token lacks
// the claim.
func threatIdentity(t *testing.T, h *harness, k keyPair) {
	var forged []string
	for i, name := range identityFields {
		switch i % 3 {
		case 1:
			name = strings.ToLower(name)
		case 2:
			name = strings.ToUpper(name)
		}
		forged = append(forged, name+": forged", name+": forged again")
	}
	send := func(path string, fields ...string) (answer, []seen) {
		return h.one(t, request("GET", path, append(append(fields, "Host: a"), forged...)...)), h.up.take()
	}
	if a, got := send("/public"); a.Status != 200 || len(got) != 1 || strings.Contains(fmt.Sprint(got[0].Header), "forged") || strings.Contains(fmt.Sprint(got[0].names()), "x-portcullis") {
		t.Errorf("absent: %d, the upstream saw %v", a.Status, got)
	}
	if a, got := send("/public", "Authorization: Bearer nonsense"); a.Status != 200 || len(got) != 1 || strings.Contains(fmt.Sprint(got[0].names()), "x-portcullis") {
		t.Errorf("failing on a public route: %d, the upstream saw %v", a.Status, got)
	}
	a, got := send("/admin", "Authorization: Bearer "+newES256(t, k.kid).token())
	refused(t, "failing", a, 401, "token_bad_signature")
	if len(got) != 0 {
		t.Errorf("failing: the upstream saw %v", got)
	}
	a, got = send("/admin", "Authorization: Bearer "+k.token("sub", omit))
	if a.Status != 200 || len(got) != 1 {
		t.Fatalf("without the claims: %d %s", a.Status, a.Body)
	}
	for name, values := range got[0].Header {
		if !strings.HasPrefix(name, "X-Portcullis") {
			continue
		}
		want := map[string]string{"X-Portcullis-Auth-Method": "jwt", "X-Portcullis-Issuer": extIssuer}[name]
		if len(values) != 1 || values[0] != want {
			t.Errorf("without the claims the upstream was told %s: %q", name, values)
		}
	}
	// Claims cannot break out of their field: a list's separators and line ends are escaped or refused.
	a, got = send("/admin", "Authorization: Bearer "+k.token("sub", "a b\u00e9%", "roles", []string{"x,admin", "y"}, "scope", "s1 s2"))
	if a.Status != 200 || len(got) != 1 || got[0].Header.Get("X-Portcullis-Subject") != "a b%C3%A9%25" ||
		got[0].Header.Get("X-Portcullis-Roles") != "x%2Cadmin,y" || got[0].Header.Get("X-Portcullis-Scopes") != "s1 s2" {
		t.Errorf("odd claims: %d %s, the upstream saw %v", a.Status, a.Body, got)
	}
	a, _ = send("/admin", "Authorization: Bearer "+k.token("sub", "a\r\nX-Portcullis-Roles: admin"))
	refused(t, "line end in a claim", a, 401, "credential_malformed")
	h.untouched(t, "line end in a claim")
}

var forwardedLines = []string{"X-Forwarded-For: 9.9.9.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil.example", "X-Forwarded-Port: 1", "X-Forwarded-Prefix: /evil",
	"X-Forwarded-Uri: /evil", "X-Forwarded-Server: evil", "X-Forwarded-Ssl: on", "X-Forwarded-Method: DELETE", "Forwarded: for=9.9.9.9;host=evil.example;proto=https", "X-Real-IP: 9.9.9.9",
	"X-Client-IP: 9.9.9.9", "True-Client-IP: 9.9.9.9", "X-Original-URL: /admin", "X-Rewrite-URL: /admin", "X-Original-Method: DELETE", "X-HTTP-Method-Override: DELETE", "X-Request-Id: chosen-by-client"}

func threatForwarded(t *testing.T, h *harness, _ keyPair) {
	// From a peer that is not trusted, nothing of it counts or passes.
	a := h.one(t, request("GET", "/public", append(forwardedLines, "Host: a")...))
	got := h.up.take()
	if a.Status != 200 || len(got) != 1 {
		t.Fatalf("%d %s, the upstream saw %v", a.Status, a.Body, got)
	}
	hd := got[0].Header
	for _, v := range []string{"9.9.9.9", "evil", "DELETE", "chosen", "/admin"} {
		if strings.Contains(fmt.Sprint(hd), v) {
			t.Errorf("untrusted: %s reached the upstream: %v", v, hd)
		}
	}
	if hd.Get("X-Forwarded-For") != "127.0.0.1" || hd.Get("X-Forwarded-Proto") != "http" || hd.Get("X-Forwarded-Host") != "a" || got[0].Method != "GET" || a.Header.Get("X-Request-Id") == "chosen-by-client" {
		t.Errorf("untrusted: %v", hd)
	}
	// The PROXY protocol is not spoken to who was not asked to speak it.
	for _, prefix := range []string{"PROXY TCP4 9.9.9.9 127.0.0.1 1 2\r\n", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x09\x09\x09\x09\x7f\x00\x00\x01\x00\x01\x00\x02"} {
		for _, a := range h.replies(t, 0, prefix+request("GET", "/public", "Host: a")) {
			refused(t, "PROXY protocol", a, 400, "request_malformed")
		}
		h.untouched(t, "PROXY protocol")
	}
	// From a trusted peer: the address right of all that is hearsay, and the scheme.
	gateway := "apiVersion: portcullis.dev/v1\nkind: Gateway\nmetadata: {name: default}\nspec: {trustedProxies: [%s]}\n"
	h.apply(fmt.Sprintf(gateway, "127.0.0.0/8"))
	a = h.one(t, request("GET", "/public", "Host: a", "X-Forwarded-For: 6.6.6.6, 1.2.3.4", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil.example", "X-Forwarded-Prefix: /evil", "X-Original-URL: /admin", "X-Request-Id: of-the-balancer"))
	got = h.up.take()
	if a.Status != 200 || len(got) != 1 {
		t.Fatalf("trusted: %d %s", a.Status, a.Body)
	}
	hd = got[0].Header
	if hd.Get("X-Forwarded-For") != "1.2.3.4, 127.0.0.1" || hd.Get("X-Forwarded-Proto") != "https" || hd.Get("X-Forwarded-Host") != "a" || hd.Get("X-Forwarded-Prefix") != "" ||
		hd.Get("X-Original-Url") != "" || a.Header.Get("X-Request-Id") != "of-the-balancer" {
		t.Errorf("trusted: %v %v", hd, a.Header)
	}
	refused(t, "two stories", h.one(t, request("GET", "/public", "Host: a", "X-Forwarded-For: 1.2.3.4", "Forwarded: for=4.3.2.1")), 400, "request_malformed")
	h.untouched(t, "two stories")
	h.apply(fmt.Sprintf(gateway, "10.0.0.0/8"))
	h.one(t, request("GET", "/public", "Host: a", "X-Forwarded-For: 1.2.3.4"))
	if got = h.up.take(); len(got) != 1 || got[0].Header.Get("X-Forwarded-For") != "127.0.0.1" {
		t.Errorf("trust was not withdrawn: %v", got)
	}
}

// Connection names fields of this hop only: it cannot remove what the gateway
// adds, and what it names does not pass.
func threatHopByHop(t *testing.T, h *harness, k keyPair) {
	for _, connection := range []string{"X-Portcullis-Subject", "x-portcullis-subject, X-Portcullis-Auth-Method", "close, X-Forwarded-For", "Authorization", "host", "X-Request-Id\r\nconnection: traceparent",
		"X-Portcullis-Subject\r\nConnection: X-Forwarded-For,x-forwarded-host, X-FORWARDED-PROTO", "Content-Length", "Transfer-Encoding"} {
		text := "GET /admin/x HTTP/1.1\r\nHost: a\r\nConnection: " + connection + "\r\nAuthorization: Bearer " + k.token() + "\r\nX-Hop: 1\r\nConnection: close, x-hop\r\n\r\n"
		all := h.replies(t, 0, text)
		got := h.up.take()
		if len(all) == 1 && all[0].Status >= 400 {
			// To refuse what would undo the gateway's own work is as good.
			if len(got) > 0 || all[0].Status != 400 && all[0].Status != 401 {
				t.Errorf("%q: refused %d, and the upstream saw %v", connection, all[0].Status, got)
			}
			continue
		}
		if len(all) != 1 || len(got) != 1 {
			t.Errorf("%q: %v, the upstream saw %v", connection, all, got)
			continue
		}
		hd := got[0].Header
		if hd.Get("X-Portcullis-Subject") != "alice" || hd.Get("X-Forwarded-For") != "127.0.0.1" || hd.Get("X-Request-Id") == "" || hd.Get("Traceparent") == "" || hd.Get("X-Forwarded-Host") != "a" {
			t.Errorf("%q took away what the gateway adds: %v", connection, hd)
		}
		if hd.Get("X-Hop") != "" || hd.Get("Connection") != "" {
			t.Errorf("%q: what is for this hop passed: %v", connection, hd)
		}
	}
	h.one(t, request("GET", "/public", "Host: a", "Keep-Alive: x", "TE: trailers", "Trailer: X", "Upgrade: h2c", "HTTP2-Settings: x", "Proxy-Connection: x", "Proxy-Authorization: Basic x", "Proxy-Authenticate: x"))
	got := h.up.take()
	if len(got) != 1 {
		t.Fatalf("the upstream saw %v", got)
	}
	for _, name := range []string{"Keep-Alive", "Te", "Trailer", "Upgrade", "Http2-Settings", "Proxy-Connection", "Proxy-Authorization", "Proxy-Authenticate"} {
		if got[0].Header.Get(name) != "" {
			t.Errorf("%s passed", name)
		}
	}
}

// Nobody is let in for being a health check.
func threatProbes(t *testing.T, h *harness, _ keyPair) {
	for _, agent := range []string{"kube-probe/1.30", "GoogleHC/1.0", "ELB-HealthChecker/2.0", "Envoy/HC", "Prometheus/3.0", "portcullis", "Consul Health Check"} {
		for _, method := range []string{"GET", "OPTIONS", "POST"} {
			refused(t, method+" as "+agent, h.do(0, method, "/admin", "", "User-Agent", agent), 401, "credential_missing")
		}
		if got := h.raw(0, request("HEAD", "/admin", "Host: a", "User-Agent: "+agent)); !strings.HasPrefix(got, "HTTP/1.1 401 ") || !strings.HasSuffix(got, "\r\n\r\n") {
			t.Errorf("HEAD as %s: %q", agent, got)
		}
	}
	for _, path := range []string{"/admin/healthz", "/admin/metrics", "/admin/favicon.ico", "/admin/robots.txt", "/admin/.well-known/x"} {
		refused(t, path, h.get(0, path), 401, "credential_missing")
	}
	h.untouched(t, "probes")
	// The node's own probes are not on the data listener: what is there is the route's.
	for _, path := range []string{"/metrics", "/readyz", "/livez", "/v1/status", "/v1/config:apply", "/v1/resources", "/debug/pprof/", "/portcullis.admin.v1.AdminService/Status"} {
		a := h.get(0, path, "Authorization", "Bearer "+h.Credential())
		if got := h.up.take(); a.Status != 200 || len(got) != 1 || got[0].Target != path {
			t.Errorf("%s is answered by the node itself: %d %.80s", path, a.Status, a.Body)
		}
	}
}

func threatCase(t *testing.T, h *harness, k keyPair) {
	for _, host := range []string{"admin.example", "ADMIN.EXAMPLE", "Admin.Example:80", "admin.example:8080", "admin.example.", "ADMIN.example.:443", "x.wild.example", "X.WILD.Example", "x.wild.example.", "a.b.wild.example"} {
		a := h.one(t, request("GET", "/x", "Host: "+host))
		if host == "a.b.wild.example" && a.Status == 200 {
			h.up.take() // a wildcard of one label; the open route answers
			continue
		}
		refused(t, host, a, 401, "credential_missing")
		h.untouched(t, host)
	}
	// Letters that fold to ASCII ones are not ASCII ones, and are no host at all.
	for _, host := range []string{"\u212adm.example", "admin.e\u017fample", "adm\u0131n.example", "admin\u3002example", "admin.example..", ".admin.example", "admin..example", "admin.example:", "admin.example:x", "admin.example:99999",
		"[admin.example]", "[::1", "::1", "admin.example,other", "admin.example/x", "admin%2eexample", "admin_.example\x00", "a@admin.example", strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 130) + "example"} {
		a := h.one(t, request("GET", "/x", "Host: "+host))
		if a.Status == 200 {
			t.Errorf("host %q reached %v", host, h.up.take())
			continue
		}
		h.untouched(t, host)
	}
	// A path is compared byte for byte: another case is another path, in the policy and upstream alike.
	a := h.one(t, request("GET", "/ADMIN", "Host: a"))
	if got := h.up.take(); a.Status != 200 || len(got) != 1 || got[0].Target != "/ADMIN" {
		t.Errorf("/ADMIN: %d %v", a.Status, got)
	}
	refused(t, "method case", h.one(t, request("get", "/public", "Host: a")), 400, "request_malformed")
	for _, scheme := range []string{"Bearer ", "bearer ", "BEARER  "} {
		if a := h.get(0, "/admin/x", "Authorization", scheme+k.token()); a.Status != 200 {
			t.Errorf("scheme %q: %d %s (RFC 9110, 11.1: schemes are case-insensitive)", scheme, a.Status, a.Body)
		}
	}
	h.up.take()
	for _, value := range []string{"Bearer", "Bearer ", "Bearer\t" + k.token(), k.token(), "Bearer Bearer " + k.token(), "Basic " + k.token(), "\u212bearer x", "Bearer " + k.token() + " ", "Bearer " + k.token() + ", Bearer x", "Bearer \"" + k.token() + "\""} {
		a := h.one(t, request("GET", "/admin", "Host: a", "Authorization: "+value))
		if strings.HasSuffix(value, " ") && a.Status == 200 {
			h.up.take() // blanks around a value are none of it (RFC 9112, 5.1)
			continue
		}
		refused(t, value[:min(20, len(value))], a, 401, "credential_malformed")
	}
	h.untouched(t, "schemes")
	// More than a hundred hosts are all guarded.
	var hosts []string
	for i := range 150 {
		hosts = append(hosts, fmt.Sprintf("h%d.many.example", i))
	}
	jwt := "policies: [{jwt: {issuers: [ext], audiences: [https://api.example]}}]"
	h.apply(routeYAML("many", "hostnames: ["+strings.Join(hosts[:75], ", ")+"]", jwt) + routeYAML("more", "hostnames: ["+strings.Join(hosts[75:], ", ")+"]", jwt))
	for _, host := range append(hosts, "H149.MANY.EXAMPLE", "h149.many.example.") {
		refused(t, host, h.get(0, "/", "Host", host), 401, "credential_missing")
	}
	h.untouched(t, "many hosts")
}

// Every way to hide a second request; what follows must not be answered.
func threatSmuggling(t *testing.T, h *harness, k keyPair) {
	post := "POST /public HTTP/1.1\r\nHost: a\r\n"
	// The head of a request may go ahead of the chunks that prove to be broken, and
	// arrive at any later moment: these have a path of their own.
	broken := "POST /public/broken HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	saw := func() (rest []seen) {
		for _, s := range h.up.take() {
			if s.Target != "/public/broken" || strings.Contains(s.Body, "GET ") {
				rest = append(rest, s)
			}
		}
		return rest
	}
	smuggled := "GET /admin HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + k.token() + "\r\n\r\n"
	for name, text := range map[string]string{
		"both":                  post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"both, other order":     post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		"two lengths":           post + "Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
		"one length twice":      post + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
		"list of lengths":       post + "Content-Length: 0, 0\r\n\r\n",
		"signed length":         post + "Content-Length: +0\r\n\r\n",
		"hex length":            post + "Content-Length: 0x0\r\n\r\n",
		"negative length":       post + "Content-Length: -1\r\n\r\n",
		"underscored length":    post + "Content-Length: 1_0\r\n\r\n",
		"huge length":           post + "Content-Length: 99999999999999999999999\r\n\r\n",
		"misspelt chunked":      post + "Transfer-Encoding: chunke\r\n\r\n0\r\n\r\n",
		"identity":              post + "Transfer-Encoding: identity\r\n\r\n",
		"chunked twice":         post + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
		"two codings":           post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"gzip":                  post + "Transfer-Encoding: gzip\r\n\r\n",
		"vertical tab":          post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
		"space before colon":    post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"folded":                post + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
		"obs-fold":              post + "X-A: b\r\n\tc\r\n\r\n",
		"bare LF":               "POST /public HTTP/1.1\nHost: a\n\n",
		"bare LF between":       post + "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"bare CR":               post + "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"NUL in a value":        post + "X: y\x00z\r\n\r\n",
		"NUL in a name":         post + "X\x00: y\r\n\r\n",
		"control in a name":     post + "X\x01: y\r\n\r\n",
		"HTTP/1.0 and chunked":  "POST /public HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/0.9":              "GET /public\r\n",
		"HTTP/3.0":              "GET /public HTTP/3.0\r\nHost: a\r\n\r\n",
		"h2 preface, cut short": "PRI * HTTP/2.0\r\n\r\n",
		"two hosts":             post + "Host: b\r\n\r\n",
		"no host":               "GET /public HTTP/1.1\r\n\r\n",
		"leading empty line":    "\r\nGET /public HTTP/1.1\r\nHost: a\r\n\r\n",
		"data after upgrade":    "GET /public HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
		"body of a CONNECT":     "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
		"length of an upgrade":  post + "Content-Length: 3\r\nTransfer-Encoding: \r\n\r\nabc",
		"trailer of a request":  broken + "0\r\nContent-Length : 5\r\n\r\n",
		"chunk extension":       broken + "1;a=b\r\nx\r\n0\r\n\r\n",
		"chunk size signed":     broken + "+1\r\nx\r\n0\r\n\r\n",
		"chunk size 0x":         broken + "0x1\r\nx\r\n0\r\n\r\n",
		"chunk size space":      broken + "1 \r\nx\r\n0\r\n\r\n",
		"chunk size overflow":   broken + "10000000000000001\r\nx\r\n0\r\n\r\n",
		"chunk bare LF":         broken + "1\nx\r\n0\r\n\r\n",
		"chunk without its end": broken + "1\r\nxx0\r\n\r\n",
	} {
		all := h.replies(t, 0, text+smuggled)
		if len(all) != 1 {
			t.Errorf("%s: %d answers", name, len(all))
		}
		for _, a := range all {
			refused(t, name, a, 0, "request_malformed")
			if a.Status != 400 && a.Status != 501 || !strings.EqualFold(a.Header.Get("Connection"), "close") {
				t.Errorf("%s: %d, Connection %q", name, a.Status, a.Header.Get("Connection"))
			}
		}
		if got := saw(); len(got) > 0 {
			t.Errorf("%s: the upstream saw %v", name, got)
		}
	}
	// Pipelined requests are separate requests, each with its own verdict.
	all := h.replies(t, 0, "POST /public/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nGET /admin H"+"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"+"GET /public/2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if len(all) != 3 || all[0].Status != 200 || all[2].Status != 200 {
		t.Fatalf("pipelined: %v", all)
	}
	refused(t, "pipelined", all[1], 401, "credential_missing")
	if got := saw(); len(got) != 2 || got[0].Body != "GET /admin H" || got[1].Target != "/public/2" {
		t.Errorf("pipelined: the upstream saw %v", got)
	}
}

// What a request may cost is bounded, and said.
func threatSizes(t *testing.T, h *harness, k keyPair) {
	refused(t, "10 MB header", h.sendAndRead(t, "GET /public HTTP/1.1\r\nHost: a\r\nX-Big: ", strings.Repeat("a", 10<<20), "\r\n\r\n"), 431, "request_too_large")
	refused(t, "10 MB target", h.sendAndRead(t, "GET /", strings.Repeat("a", 10<<20), " HTTP/1.1\r\nHost: a\r\n\r\n"), 0, "request_too_large")
	refused(t, "10,000 cookies", h.sendAndRead(t, "GET /public HTTP/1.1\r\nHost: a\r\n", strings.Repeat("Cookie: a=b\r\n", 10_000), "\r\n"), 431, "request_too_large")
	refused(t, "many fields", h.one(t, request("GET", "/public", "Host: a", strings.TrimSuffix(strings.Repeat("A: b\r\n", 250), "\r\n"))), 431, "request_too_large")
	refused(t, "11 MB announced", h.one(t, request("POST", "/public", "Host: a", "Content-Length: 11534336")), 413, "request_too_large")
	refused(t, "1 GB announced", h.one(t, request("POST", "/public", "Host: a", "Content-Length: 1073741824", "Expect: 100-continue")), 413, "request_too_large")
	h.untouched(t, "sizes")
	// Without a length the limit is met while the body comes: at an upstream that
	// reads to the end before it answers.
	h.up.answer(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	defer h.up.answer(nil)
	chunk := fmt.Sprintf("%x\r\n%s\r\n", 1<<20, strings.Repeat("a", 1<<20))
	refused(t, "11 MB in chunks", h.sendAndRead(t, "POST /public HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", strings.Repeat(chunk, 11), "0\r\n\r\n"), 413, "request_too_large")
	h.up.answer(nil)
	h.up.take() // its head went ahead; it ended in an error there
	// A node of which this was asked serves as before.
	if a := h.get(0, "/admin/after", authorization(k.token())...); a.Status != 200 {
		t.Errorf("after all that: %+v", a)
	}
	// The limits are the Gateway's to say.
	h.apply("apiVersion: portcullis.dev/v1\nkind: Gateway\nmetadata: {name: default}\nspec: {limits: {maxBodyBytes: 4, maxHeaderBytes: 1024}}\n")
	h.up.take()
	refused(t, "small body limit", h.do(0, "POST", "/public", "12345"), 413, "request_too_large")
	refused(t, "small head limit", h.one(t, request("GET", "/public", "Host: a", "X: "+strings.Repeat("a", 2000))), 431, "request_too_large")
	h.untouched(t, "small limits")
	if a := h.do(0, "POST", "/public", "1234"); a.Status != 200 {
		t.Errorf("4 bytes of 4: %+v", a)
	}
	h.apply("apiVersion: portcullis.dev/v1\nkind: Gateway\nmetadata: {name: default}\nspec: {limits: {}}\n")
}

// sendAndRead writes as much as the node takes while it reads the one answer.
func (h *harness) sendAndRead(t *testing.T, parts ...string) answer {
	t.Helper()
	conn, err := net.Dial("tcp", h.Addresses()[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for _, part := range parts {
			if _, err := conn.Write([]byte(part)); err != nil {
				return
			}
		}
	}()
	reader := textproto.NewConn(conn)
	status, err := reader.ReadLine()
	if err != nil {
		t.Errorf("no answer: %v", err)
		_ = conn.Close()
		<-sent
		return answer{}
	}
	head, err := reader.ReadMIMEHeader()
	if err != nil {
		t.Errorf("no head: %v", err)
	}
	body := make([]byte, 64<<10)
	var size int
	_, _ = fmt.Sscan(head.Get("Content-Length"), &size)
	size = min(size, len(body))
	for n := 0; n < size; {
		m, err := reader.R.Read(body[n:size])
		if err != nil {
			t.Errorf("the body is cut: %v", err)
			break
		}
		n += m
	}
	_ = conn.Close()
	<-sent
	a := answer{Header: map[string][]string(head), Body: string(body[:size])}
	_, _ = fmt.Sscanf(status, "HTTP/1.1 %d", &a.Status)
	return a
}

// A thousand connections that say nothing, or half a head, cost nobody else.
func threatIdle(t *testing.T, h *harness, k keyPair) {
	idle := make([]net.Conn, 1000)
	for i := range idle {
		conn, err := net.Dial("tcp", h.Addresses()[0])
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		idle[i] = conn
		if i%2 == 1 {
			_, _ = fmt.Fprint(conn, "GET /admin HTTP/1.1\r\nHost: a\r\nX-Slow")
		}
	}
	for range 50 {
		if a := h.get(0, "/admin/x", authorization(k.token())...); a.Status != 200 {
			t.Fatalf("among idle connections: %+v", a)
		}
	}
	if got := h.up.take(); len(got) != 50 {
		t.Errorf("the upstream saw %d requests, want 50", len(got))
	}
	// One of them that goes on is served like any other.
	conn := idle[1]
	_, _ = fmt.Fprint(conn, ": y\r\nConnection: close\r\n\r\n")
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	status, err := textproto.NewConn(conn).ReadLine()
	if err != nil || !strings.HasPrefix(status, "HTTP/1.1 401 ") {
		t.Errorf("a slow head: %q %v", status, err)
	}
}
