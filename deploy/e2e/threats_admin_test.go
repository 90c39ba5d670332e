package e2e_test

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// rest is a client of the admin API's REST side.
func (h *harness) rest(t *testing.T, method, path, body string, fields ...string) (int, string) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(h.Authorities())
	secure, err := identity.ClientAdmin(h.Authorities())
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: secure, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+h.AdminAddress()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(fields); i += 2 {
		req.Header.Add(fields[i], fields[i+1])
	}
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

const twoWorkspaces = `
apiVersion: portcullis.dev/v1
kind: Workspace
metadata: {name: shop}
spec: {description: one}
---
apiVersion: portcullis.dev/v1
kind: Workspace
metadata: {name: bank}
spec: {description: other}
---
apiVersion: portcullis.dev/v1
kind: Application
metadata: {workspace: bank, name: app}
spec: {description: of the bank}
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {workspace: bank, name: vault}
spec: {issuer: 'https://bank.example', builtIn: true}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: bank, name: transfers}
spec:
  matches: [{path: {prefix: /transfers}}]
  policies: [{jwt: {issuers: [vault], audiences: [bank]}}]
  backends: [{upstream: up}]
`

func TestThreatsOfAdmin(t *testing.T) {
	h := start(t, cluster.Config{})
	h.apply(twoWorkspaces)
	t.Run("nobody", func(t *testing.T) { threatNobody(t, h) })
	t.Run("another workspace", func(t *testing.T) { threatWorkspaces(t, h) })
	t.Run("roles", func(t *testing.T) { threatRoles(t, h) })
	t.Run("documents", func(t *testing.T) { threatDocuments(t, h) })
	t.Run("many routes", func(t *testing.T) { threatManyRoutes(t, h, manyRoutes) })
}

// guesses are credentials that peers shipped with, and ways to claim one.
func guesses(h *harness) [][]string {
	first := h.Credential()
	return [][]string{
		nil,
		{"Authorization", ""}, {"Authorization", "Bearer "}, {"Authorization", "Bearer admin"}, {"Authorization", "Basic YWRtaW46YWRtaW4="}, {"Authorization", "Bearer pco_" + strings.Repeat("0", 43)},
		{"X-API-KEY", "edd1c9f034335f136f87ad84b625c8f1"}, {"Authorization", "Bearer edd1c9f034335f136f87ad84b625c8f1"}, {"Kong-Admin-Token", "kong_admin"},
		{"X-Forwarded-For", "127.0.0.1", "X-Real-IP", "127.0.0.1", "X-Forwarded-User", "admin", "X-Portcullis-Subject", "admin"},
		{"Grpc-Metadata-Authorization", "Bearer admin"},
		{"Authorization", first}, {"Authorization", "Token " + first}, {"Authorization", "Bearer " + first[:len(first)-1]}, {"Authorization", "Bearer " + first + "x"}, {"Authorization", "Bearer " + strings.ToUpper(first)},
		{"Authorization", "Bearer " + strings.TrimPrefix(first, "pco_")}, {"Authorization", "Bearer " + first, "Authorization", "Bearer x"},
		{"Cookie", "session=" + first}, {"Proxy-Authorization", "Bearer " + first},
	}
}

// Nothing is answered to who shows no credential of ours, wherever it comes
// from: loopback is nobody, and so is a token for the data plane.
func threatNobody(t *testing.T, h *harness) {
	paths := []string{"GET /v1/resources", "GET /v1/status", "GET /v1/history", "GET /v1/operators", "GET /v1/resources/Route/bank/transfers", "GET /v1/decisions/x", "GET /v1/config:wait",
		"POST /v1/config:apply", "POST /v1/config:plan", "POST /v1/config:rollback", "POST /v1/keys", "POST /v1/keys/bank/x:revoke", "POST /v1/tokens", "POST /v1/revocations", "POST /v1/join-tokens", "POST /v1/operators", "DELETE /v1/operators/x"}
	all := append(guesses(h), []string{"Authorization", "Bearer " + h.mint("root", "admin")})
	for _, path := range paths {
		method, path, _ := strings.Cut(path, " ")
		for i, guess := range all {
			if i > 1 && path != "/v1/resources" && path != "/v1/operators" {
				continue // every guess on a reading and a writing path, two on each other
			}
			body := ""
			if method == "POST" {
				body = "{}"
			}
			code, text := h.rest(t, method, path, body, guess...)
			if code != http.StatusUnauthorized || strings.Contains(text, "bank") {
				t.Errorf("%s %s with %q: %d %s", method, path, guess, code, text)
			}
		}
	}
	// The query is no place for a credential.
	if code, text := h.rest(t, "GET", "/v1/status?access_token="+h.Credential(), ""); code != http.StatusUnauthorized && code != http.StatusBadRequest {
		t.Errorf("a credential in the query: %d %s", code, text)
	}
	// What is not the API is not there.
	for _, path := range []string{"/", "/debug/pprof/", "/metrics", "/v1", "/v1/../v1/status", "//v1/status", "/apisix/admin/routes"} {
		if code, text := h.rest(t, "GET", path, ""); code < 300 || strings.Contains(text, "goroutine") {
			t.Errorf("%s: %d %.100s", path, code, text)
		}
	}
	// Every method of the gRPC side, as it is registered.
	secure, err := identity.ClientAdmin(h.Authorities())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+h.AdminAddress(), grpc.WithTransportCredentials(credentials.NewTLS(secure)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	desc := adminv1.AdminService_ServiceDesc
	if len(desc.Methods) < 17 || len(desc.Streams) < 1 {
		t.Fatalf("%d methods, %d streams", len(desc.Methods), len(desc.Streams))
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-for", "127.0.0.1", "x-operator", "admin")
	for _, method := range desc.Methods {
		err := conn.Invoke(ctx, "/"+desc.ServiceName+"/"+method.MethodName, &emptypb.Empty{}, &emptypb.Empty{})
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s without a credential: %v", method.MethodName, err)
		}
	}
	for _, stream := range desc.Streams {
		s, err := conn.NewStream(ctx, &stream, "/"+desc.ServiceName+"/"+stream.StreamName)
		if err == nil {
			if err = s.SendMsg(&emptypb.Empty{}); err == nil {
				_ = s.CloseSend()
				err = s.RecvMsg(&emptypb.Empty{})
			}
		}
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s without a credential: %v", stream.StreamName, err)
		}
	}
	// A path as older gRPC read it, without its slash or with too many.
	for _, method := range []string{"//" + desc.ServiceName + "/Status", "/" + desc.ServiceName + "//Status", "/" + strings.ToLower(desc.ServiceName) + "/status"} {
		if err := conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{}); err == nil {
			t.Errorf("%s is answered", method)
		}
	}
	// The planes' own services are not on the admin listener, nor may who has no
	// certificate ask them on theirs.
	for _, method := range []string{controlv1.PeerService_ServiceDesc.ServiceName, controlv1.ControlService_ServiceDesc.ServiceName, controlv1.JoinService_ServiceDesc.ServiceName, "grpc.reflection.v1.ServerReflection"} {
		if err := conn.Invoke(ctx, "/"+method+"/Join", &emptypb.Empty{}, &emptypb.Empty{}); status.Code(err) != codes.Unimplemented && status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s on the admin listener: %v", method, err)
		}
	}
	inner, err := grpc.NewClient("passthrough:///"+h.ControlAddress(), grpc.WithTransportCredentials(credentials.NewTLS(secure)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = inner.Close() }()
	for _, service := range []grpc.ServiceDesc{controlv1.PeerService_ServiceDesc, controlv1.ControlService_ServiceDesc, controlv1.RenewService_ServiceDesc} {
		for _, method := range service.Methods {
			if err := inner.Invoke(ctx, "/"+service.ServiceName+"/"+method.MethodName, &emptypb.Empty{}, &emptypb.Empty{}); err == nil {
				t.Errorf("%s/%s without a certificate is answered", service.ServiceName, method.MethodName)
			}
		}
		for _, stream := range service.Streams {
			s, err := inner.NewStream(ctx, &stream, "/"+service.ServiceName+"/"+stream.StreamName)
			if err == nil {
				_ = s.SendMsg(&emptypb.Empty{})
				_ = s.CloseSend()
				err = s.RecvMsg(&emptypb.Empty{})
			}
			if err == nil || err == io.EOF {
				t.Errorf("%s/%s without a certificate is answered: %v", service.ServiceName, stream.StreamName, err)
			}
		}
	}
	// Joining takes a token, once.
	join := controlv1.NewJoinServiceClient(inner)
	for _, token := range []string{"", "pcj_x", h.Credential(), "pcj_" + strings.Repeat("A", 60)} {
		if _, err := join.Join(ctx, &controlv1.JoinRequest{Token: token, Csr: []byte("x")}); err == nil {
			t.Errorf("joined with %q", token)
		}
	}
}

func (h *harness) newOperator(t *testing.T, name string, role adminv1.Role, workspaces ...string) adminv1.AdminServiceClient {
	t.Helper()
	made, err := h.admin.CreateOperator(t.Context(), &adminv1.CreateOperatorRequest{Operator: &adminv1.Operator{Name: name, Role: role, Workspaces: workspaces}})
	if err != nil {
		t.Fatal(err)
	}
	return h.operator(made.Credential)
}

func upsert(rs ...*configv1.Resource) *adminv1.Change { return &adminv1.Change{Upserts: rs} }

func application(workspace, name string) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Workspace: workspace, Name: name}, Spec: &configv1.Resource_Application{Application: &configv1.Application{Description: "x"}}}
}

// An operator of one workspace neither reads nor writes another; a batch with
// one document that it may not write is refused whole.
func threatWorkspaces(t *testing.T, h *harness) {
	ctx := t.Context()
	shop := h.newOperator(t, "shop-admin", adminv1.Role_ROLE_ADMIN, "shop")
	if _, err := shop.Apply(ctx, &adminv1.ApplyRequest{Change: upsert(application("shop", "own"))}); err != nil {
		t.Fatalf("in its own workspace: %v", err)
	}
	workspace := &configv1.Resource{Metadata: &configv1.Metadata{Name: "shop"}, Spec: &configv1.Resource_Workspace{Workspace: &configv1.Workspace{Description: "no baseline any more"}}}
	gateway := &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "default", Name: "default"}, Spec: &configv1.Resource_Gateway{Gateway: &configv1.Gateway{TrustedProxies: []string{"0.0.0.0/0"}}}}
	keySet := &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "shop", Name: "local"}, Spec: &configv1.Resource_KeySet{KeySet: &configv1.KeySet{}}}
	credential := &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "shop", Name: "c"}, Spec: &configv1.Resource_Credential{Credential: &configv1.Credential{Application: "own"}}}
	for name, bad := range map[string]*adminv1.Change{
		"another workspace":     upsert(application("bank", "x")),
		"the default workspace": upsert(application("default", "x")),
		"an unnamed workspace":  upsert(application("", "x")),
		"the workspace itself":  upsert(workspace),
		"the gateway":           upsert(gateway),
		"a key set":             upsert(keySet),
		"a credential":          upsert(credential),
		"a workspace to come":   upsert(application("shop2", "x")),
		"a name with a slash":   upsert(application("shop/../bank", "x")),
		"another case":          upsert(application("SHOP", "x")),
		"deletion elsewhere":    {Deletes: []*controlv1.ResourceKey{{Kind: "Route", Workspace: "bank", Name: "transfers"}}},
		"deletion by default":   {Deletes: []*controlv1.ResourceKey{{Kind: "Issuer", Workspace: "", Name: "local"}}},
		"deletion of itself":    {Deletes: []*controlv1.ResourceKey{{Kind: "Workspace", Name: "shop"}}},
	} {
		before, err := h.admin.Status(ctx, &adminv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		// The good document first, and last.
		for _, change := range []*adminv1.Change{
			{Upserts: append([]*configv1.Resource{application("shop", "smuggled")}, bad.Upserts...), Deletes: bad.Deletes},
			{Upserts: append(append([]*configv1.Resource{}, bad.Upserts...), application("shop", "smuggled")), Deletes: bad.Deletes},
		} {
			_, err := shop.Apply(ctx, &adminv1.ApplyRequest{Change: change})
			if code := status.Code(err); code != codes.PermissionDenied && code != codes.InvalidArgument {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := shop.Plan(ctx, &adminv1.PlanRequest{Change: change}); err == nil && !strings.Contains("the gateway the workspace itself deletion of itself a key set a credential", name) {
				t.Errorf("%s: planned", name)
			}
		}
		after, err := h.admin.Status(ctx, &adminv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if before.Revision.Revision != after.Revision.Revision {
			t.Errorf("%s: revision %d became %d", name, before.Revision.Revision, after.Revision.Revision)
		}
	}
	if _, err := h.admin.Get(ctx, &adminv1.GetRequest{Kind: "Application", Workspace: "shop", Name: "smuggled"}); status.Code(err) != codes.NotFound {
		t.Errorf("a part of a refused batch was written: %v", err)
	}
	list, err := shop.List(ctx, &adminv1.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list.Resources {
		if key := config.KeyOf(r); key.Workspace != "shop" && key.Name != "shop" {
			t.Errorf("lists %s", key)
		}
	}
	history, err := shop.History(ctx, &adminv1.HistoryRequest{})
	if err == nil {
		for _, entry := range history.Entries {
			for _, change := range entry.Changes {
				if change.Key.Workspace != "shop" && change.Key.Name != "shop" {
					t.Errorf("the history shows %v", change.Key)
				}
			}
		}
	}
	for name, call := range map[string]func() error{
		"list another": func() error { _, err := shop.List(ctx, &adminv1.ListRequest{Workspace: "bank"}); return err },
		"list credentials": func() error {
			_, err := shop.List(ctx, &adminv1.ListRequest{Kind: "Credential", Workspace: "bank"})
			return err
		},
		"get another": func() error {
			_, err := shop.Get(ctx, &adminv1.GetRequest{Kind: "Route", Workspace: "bank", Name: "transfers"})
			return err
		},
		"get by default": func() error { _, err := shop.Get(ctx, &adminv1.GetRequest{Kind: "Issuer", Name: "local"}); return err },
		"get another workspace": func() error {
			_, err := shop.Get(ctx, &adminv1.GetRequest{Kind: "Workspace", Name: "bank"})
			return err
		},
		"history of another": func() error { _, err := shop.History(ctx, &adminv1.HistoryRequest{Workspace: "bank"}); return err },
		"key for another": func() error {
			_, err := shop.CreateKey(ctx, &adminv1.CreateKeyRequest{Workspace: "bank", Application: "app"})
			return err
		},
		"key by default": func() error { _, err := shop.CreateKey(ctx, &adminv1.CreateKeyRequest{Application: "app"}); return err },
		"revoke a key": func() error {
			_, err := shop.RevokeKey(ctx, &adminv1.RevokeKeyRequest{Workspace: "bank", Name: "x"})
			return err
		},
		"token of default": func() error { _, err := shop.MintToken(ctx, &adminv1.MintTokenRequest{Subject: "a"}); return err },
		"token of another": func() error {
			_, err := shop.MintToken(ctx, &adminv1.MintTokenRequest{Issuer: "bank/vault", Subject: "a"})
			return err
		},
		"revoke everywhere": func() error { _, err := shop.Revoke(ctx, &adminv1.RevokeRequest{Subject: "alice"}); return err },
		"join token":        func() error { _, err := shop.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{}); return err },
		"operator": func() error {
			_, err := shop.CreateOperator(ctx, &adminv1.CreateOperatorRequest{Operator: &adminv1.Operator{Name: "more", Role: adminv1.Role_ROLE_ADMIN}})
			return err
		},
		"operator of its own": func() error {
			_, err := shop.CreateOperator(ctx, &adminv1.CreateOperatorRequest{Operator: &adminv1.Operator{Name: "more", Role: adminv1.Role_ROLE_ADMIN, Workspaces: []string{"shop", "bank"}}})
			return err
		},
		"operators": func() error { _, err := shop.ListOperators(ctx, &adminv1.ListOperatorsRequest{}); return err },
		"delete operators": func() error {
			_, err := shop.DeleteOperator(ctx, &adminv1.DeleteOperatorRequest{Name: "admin"})
			return err
		},
		"roll back": func() error { _, err := shop.Rollback(ctx, &adminv1.RollbackRequest{Revision: 1}); return err },
	} {
		if err := call(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v, want PermissionDenied", name, err)
		}
	}
	// The same through REST: one interceptor, not two.
	made, err := h.admin.CreateOperator(ctx, &adminv1.CreateOperatorRequest{Operator: &adminv1.Operator{Name: "shop-rest", Role: adminv1.Role_ROLE_EDITOR, Workspaces: []string{"shop"}}})
	if err != nil {
		t.Fatal(err)
	}
	body := `{"change":{"upserts":[{"metadata":{"workspace":"shop","name":"a"},"application":{}},{"metadata":{"workspace":"bank","name":"b"},"application":{}}]}}`
	if code, text := h.rest(t, "POST", "/v1/config:apply", body, "Authorization", "Bearer "+made.Credential); code != http.StatusForbidden {
		t.Errorf("REST batch: %d %s", code, text)
	}
	if code, text := h.rest(t, "GET", "/v1/resources/Route/bank/transfers", "", "Authorization", "Bearer "+made.Credential); code != http.StatusForbidden || strings.Contains(text, "prefix") {
		t.Errorf("REST read: %d %s", code, text)
	}
	// A deleted operator is out at once.
	if _, err := h.admin.DeleteOperator(ctx, &adminv1.DeleteOperatorRequest{Name: "shop-admin"}); err != nil {
		t.Fatal(err)
	}
	if _, err := shop.List(ctx, &adminv1.ListRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a deleted operator: %v", err)
	}
}

func threatRoles(t *testing.T, h *harness) {
	ctx := t.Context()
	type call struct {
		name string
		do   func(adminv1.AdminServiceClient) error
		may  []adminv1.Role
	}
	editor, security, admin := adminv1.Role_ROLE_EDITOR, adminv1.Role_ROLE_SECURITY, adminv1.Role_ROLE_ADMIN
	calls := []call{
		{"apply", func(c adminv1.AdminServiceClient) error {
			_, err := c.Apply(ctx, &adminv1.ApplyRequest{Change: upsert(application("shop", "role"))})
			return err
		}, []adminv1.Role{editor, admin}},
		{"create key", func(c adminv1.AdminServiceClient) error {
			_, err := c.CreateKey(ctx, &adminv1.CreateKeyRequest{Workspace: "bank", Application: "app"})
			return err
		}, []adminv1.Role{security, admin}},
		{"mint", func(c adminv1.AdminServiceClient) error {
			_, err := c.MintToken(ctx, &adminv1.MintTokenRequest{Subject: "a"})
			return err
		}, []adminv1.Role{security, admin}},
		{"revoke", func(c adminv1.AdminServiceClient) error {
			_, err := c.Revoke(ctx, &adminv1.RevokeRequest{Jti: "nobody's"})
			return err
		}, []adminv1.Role{security, admin}},
		{"join token", func(c adminv1.AdminServiceClient) error {
			_, err := c.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{})
			return err
		}, []adminv1.Role{admin}},
		{"operators", func(c adminv1.AdminServiceClient) error {
			_, err := c.ListOperators(ctx, &adminv1.ListOperatorsRequest{})
			return err
		}, []adminv1.Role{admin}},
	}
	for _, role := range []adminv1.Role{adminv1.Role_ROLE_VIEWER, editor, security, admin} {
		client := h.newOperator(t, "role-"+fmt.Sprint(int(role)), role)
		for _, c := range calls {
			want := codes.PermissionDenied
			for _, may := range c.may {
				if may == role {
					want = codes.OK
				}
			}
			if err := c.do(client); status.Code(err) != want {
				t.Errorf("%s as %v: %v, want %v", c.name, role, err, want)
			}
		}
	}
}

// A document that costs more than documents do is refused, in words, and the
// control plane goes on.
func threatDocuments(t *testing.T, h *harness) {
	ctx := t.Context()
	mega := strings.Repeat("a", 1<<20)
	match := func(m *configv1.Match) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "shop", Name: "costly"}, Spec: &configv1.Resource_Route{Route: &configv1.Route{
			Public: true, Matches: []*configv1.Match{m}, Backends: []*configv1.Backend{{Upstream: "up"}},
		}}}
	}
	regex := func(src string) *configv1.Resource {
		return match(&configv1.Match{Headers: []*configv1.ValueMatch{{Name: "x", Kind: &configv1.ValueMatch_Regex{Regex: src}}}})
	}
	rule := func(src string) *configv1.Resource {
		r := match(&configv1.Match{})
		r.GetRoute().Policies = []*configv1.Policy{{Kind: &configv1.Policy_Authorize{Authorize: &configv1.Authorize{Rules: []*configv1.AuthorizeRule{{Name: "r", Require: src}}}}}}
		return r
	}
	big := application("shop", "costly")
	big.GetApplication().Description = strings.Repeat("a", 3<<20)
	for name, r := range map[string]*configv1.Resource{
		"1 MB regex": regex(mega), "1 MB of alternatives": regex(strings.Repeat("a|", 1<<19) + "a"), "regex bomb": regex("((a{1,100}){1,100}){1,100}"), "no RE2": regex(`(a)\1`), "lookahead": regex("(?=a)"), "broken regex": regex("(("),
		"1 MB CEL": rule("'" + mega + "' == 'a'"), "deep CEL": rule(strings.Repeat("(", 1500) + "true" + strings.Repeat(")", 1500)), "costly CEL": rule("[1,2,3,4,5,6,7,8,9].all(a, [1,2,3,4,5,6,7,8,9].all(b, [1,2,3,4,5,6,7,8,9].all(c, [1,2,3,4,5,6,7,8,9].all(d, [1,2,3,4,5,6,7,8,9].all(e, [1,2,3,4,5,6,7,8,9].all(f, a+b+c+d+e+f > 0))))))"),
		"regex in CEL": rule("'x'.matches('((a{1,100}){1,100}){1,100}')"), "CEL of another type": rule("1"), "broken CEL": rule("request."), "unknown name in CEL": rule("secrets.all"),
		"1 MB path": match(&configv1.Match{Path: &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: "/" + mega}}}), "1 MB host": func() *configv1.Resource {
			r := match(&configv1.Match{})
			r.GetRoute().Hostnames = []string{mega + ".example"}
			return r
		}(),
		"3 MB document": big, "1 MB name": application("shop", mega), "path that no request has": match(&configv1.Match{Path: &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: "/a/../b"}}}),
	} {
		began := time.Now()
		_, err := h.admin.Apply(ctx, &adminv1.ApplyRequest{Change: upsert(r)})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %.300v", name, err)
			continue
		}
		if text := err.Error(); len(text) > 4096 {
			t.Errorf("%s: the refusal is %d bytes long", name, len(text))
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s took %v to refuse", name, took)
		}
	}
	// A batch of a thousand mistakes is told in a few.
	wrong := &adminv1.Change{}
	for i := range 1_000 {
		wrong.Upserts = append(wrong.Upserts, application("shop", fmt.Sprint("Wrong_", i)))
	}
	if _, err := h.admin.Apply(ctx, &adminv1.ApplyRequest{Change: wrong}); status.Code(err) != codes.InvalidArgument || len(err.Error()) > 64<<10 || !strings.Contains(err.Error(), " more problems") {
		t.Errorf("a thousand mistakes: %.300v", err)
	}
	// The same by REST.
	credential := []string{"Authorization", "Bearer " + h.Credential()}
	document, err := json.Marshal(map[string]any{"change": map[string]any{"upserts": []any{map[string]any{"metadata": map[string]any{"workspace": "shop", "name": "big"}, "application": map[string]any{"description": strings.Repeat("b", 3<<20)}}}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"3 MB document": string(document), "deep JSON": strings.Repeat(`{"change":`, 20000), "unknown field": `{"change":{},"changes":{}}`, "broken": `{"change":`, "two kinds": `{"change":{"upserts":[{"metadata":{"name":"a"},"application":{},"workspace":{}}]}}`,
		"duplicate member": `{"change":{"upserts":[]},"change":{"upserts":[]}}`, "no object": `[]`, "null": `{"change":{"upserts":[null]}}`, "no kind": `{"change":{"upserts":[{"metadata":{"name":"a"}}]}}`,
	} {
		if code, text := h.rest(t, "POST", "/v1/config:apply", body, credential...); code != http.StatusBadRequest {
			t.Errorf("REST, %s: %d %.200s", name, code, text)
		}
	}
	// YAML is read where the file is; what it is read by is bounded too.
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'i'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	for name, text := range map[string]string{
		"alias bomb": bomb, "alias in a document": "apiVersion: portcullis.dev/v1\nkind: Application\nmetadata: {name: a, labels: &l {a: b}}\nspec: {scopes: [*l]}\n",
		"merge key": "apiVersion: portcullis.dev/v1\nkind: Application\nmetadata: &m {name: a}\nspec: {<<: *m}\n", "3 MB document": "apiVersion: portcullis.dev/v1\nkind: Application\nmetadata: {name: a}\nspec: {description: '" + strings.Repeat("a", 3<<20) + "'}\n",
		"deep": "a: " + strings.Repeat("[", 20_000), "deep blocks": strings.Repeat("- ", 20_000) + "x", "tag": "apiVersion: !!python/object portcullis.dev/v1\n",
	} {
		began := time.Now()
		docs, err := config.Decode("bad.yaml", []byte(text))
		if err == nil {
			t.Errorf("%s was read: %d documents", name, len(docs))
		} else if !strings.HasPrefix(err.Error(), "bad.yaml:") || len(err.Error()) > 4096 {
			t.Errorf("%s: %.200v", name, err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s took %v to refuse", name, took)
		}
	}
	if _, err := h.admin.Apply(ctx, &adminv1.ApplyRequest{Change: upsert(application("shop", "after"))}); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func manyKeys(n int) []*controlv1.ResourceKey {
	all := make([]*controlv1.ResourceKey, n)
	for i := range all {
		all[i] = &controlv1.ResourceKey{Kind: "Route", Workspace: "shop", Name: fmt.Sprint("r", i)}
	}
	return all
}

// Thousands of routes in one apply are one revision, all guarded from the same
// moment.
func threatManyRoutes(t *testing.T, h *harness, n int) {
	change := &adminv1.Change{}
	for i := range n {
		change.Upserts = append(change.Upserts, &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "shop", Name: fmt.Sprint("r", i)}, Spec: &configv1.Resource_Route{Route: &configv1.Route{
			Matches:  []*configv1.Match{{Path: &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: fmt.Sprint("/many/", i)}}}},
			Policies: []*configv1.Policy{{Kind: &configv1.Policy_Jwt{Jwt: &configv1.JWT{Issuers: []string{"local"}, Audiences: []string{"https://api.example"}}}}},
			Backends: []*configv1.Backend{{Upstream: "up"}},
		}}})
	}
	wait := durationpb.New(patience)
	resp, err := h.admin.Apply(t.Context(), &adminv1.ApplyRequest{Change: change, WaitFor: wait})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.Convergence.Converged || len(resp.Changes) != n {
		t.Fatalf("%v, %d changes", resp.Convergence, len(resp.Changes))
	}
	token := h.mint("alice")
	for _, i := range []int{0, 1, n / 2, n - 1} {
		path := fmt.Sprintf("/many/%d/x", i)
		refused(t, path, h.get(0, path), 401, "credential_missing")
		h.untouched(t, path)
		if a := h.get(0, path, authorization(token)...); a.Status != 200 {
			t.Errorf("%s: %+v", path, a)
		}
		h.up.take()
	}
	refused(t, "no such route", h.get(0, fmt.Sprint("/many/", n)), 404, "no_route")
	if _, err := h.admin.Apply(t.Context(), &adminv1.ApplyRequest{Change: &adminv1.Change{Deletes: manyKeys(n)}, WaitFor: wait}); err != nil {
		t.Fatal(err)
	}
	refused(t, "deleted", h.get(0, "/many/1/x"), 404, "no_route")
}
