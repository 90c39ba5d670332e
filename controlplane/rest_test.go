package controlplane

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// rules lists the REST method and path of every RPC, from the descriptors.
func rules(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	services := adminv1.File_admin_v1_admin_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			method := methods.Get(j)
			rule, _ := proto.GetExtension(method.Options(), annotations.E_Http).(*annotations.HttpRule)
			if rule == nil {
				t.Fatalf("%s has no REST path", method.FullName())
			}
			out[verb(rule)] = string(method.Name())
		}
	}
	return out
}

func verb(rule *annotations.HttpRule) string {
	var found string
	rule.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch f.Name() {
		case "get", "put", "post", "delete", "patch":
			found = strings.ToUpper(string(f.Name())) + " " + v.String()
		}
		return true
	})
	return found
}

func TestOpenAPIListsEveryPath(t *testing.T) {
	data, err := os.ReadFile("../proto/admin/v1/admin.openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		OpenAPI string                                `json:"openapi"`
		Paths   map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(data, &doc); err != nil || !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Fatalf("OpenAPI %q, %v", doc.OpenAPI, err)
	}
	documented := map[string]bool{}
	for path, verbs := range doc.Paths {
		for verb := range verbs {
			documented[strings.ToUpper(verb)+" "+path] = true
		}
	}
	rules := rules(t)
	for rule, method := range rules {
		if !documented[rule] {
			t.Errorf("%s (%s) is not in the OpenAPI document", rule, method)
		}
	}
	if len(documented) != len(rules) {
		t.Errorf("%d operations documented, %d exist", len(documented), len(rules))
	}
}

// The REST API over the real listener, as curl sees it.
func TestREST(t *testing.T) {
	t.Parallel()
	r := newReplica(t, memoryStore(t), "cp-1", "")
	if err := r.Await(t.Context(), config.Version{}); err != nil {
		t.Fatal(err)
	}
	tls, err := identity.ClientAdmin(r.Authorities())
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	do := func(method, path, authorization, body string) (int, http.Header, map[string]any) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+r.rest+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		var out map[string]any
		if err := json.Unmarshal(data, &out); err != nil {
			t.Fatalf("%s %s: %q: %v", method, path, data, err)
		}
		return resp.StatusCode, resp.Header, out
	}
	bearer := "Bearer " + r.operator
	app := func(workspace string) string {
		return `{"change":{"upserts":[{"metadata":{"workspace":"` + workspace + `","name":"a"},"application":{"description":"d"}}]},"reason":"rest"}`
	}
	if code, _, out := do("POST", "/v1/config:apply", bearer, app("default")); code != 200 || out["version"] == nil {
		t.Fatalf("apply: %d %v", code, out)
	}
	if code, _, out := do("GET", "/v1/resources/Application/default/a", bearer, ""); code != 200 || out["resource"].(map[string]any)["application"].(map[string]any)["description"] != "d" {
		t.Errorf("get: %d %v", code, out)
	}
	if code, _, out := do("GET", "/v1/resources/Workspace/-/default", bearer, ""); code != 200 || out["resource"] == nil {
		t.Errorf("get a workspace: %d %v", code, out)
	}
	for _, path := range []string{"/v1/resources", "/v1/history", "/v1/status", "/v1/operators", "/v1/config:wait?timeout=0.001s"} {
		if code, _, out := do("GET", path, bearer, ""); code != 200 {
			t.Errorf("%s: %d %v", path, code, out)
		}
	}
	for name, c := range map[string]struct {
		method, path, authorization, body string
		code                              int
		reason                            string
	}{
		"nobody": {"GET", "/v1/status", "", "", 401, "unauthenticated"}, "wrong scheme": {"GET", "/v1/status", "Basic " + r.operator, "", 401, "unauthenticated"},
		"nobody writes": {"POST", "/v1/config:apply", "", app("default"), 401, "unauthenticated"},
		"not valid":     {"POST", "/v1/config:apply", bearer, app("nowhere"), 400, "invalid_request"}, "no JSON": {"POST", "/v1/config:apply", bearer, "{", 400, "invalid_request"},
		"unknown field": {"POST", "/v1/config:apply", bearer, `{"chagne":{}}`, 400, "invalid_request"}, "nothing": {"POST", "/v1/config:apply", bearer, "{}", 400, "invalid_request"},
		"conflict":    {"POST", "/v1/config:apply", bearer, `{"at":{"epoch":"1","revision":"1"},` + strings.Replace(app("default"), `{"change"`, `"change"`, 1), 409, "conflict"},
		"not there":   {"GET", "/v1/resources/Route/default/x", bearer, "", 404, "not_found"},
		"no decision": {"GET", "/v1/decisions/x", bearer, "", 404, "not_found"},
		"no path":     {"GET", "/v1/nothing", bearer, "", 404, "not_found"}, "no method": {"DELETE", "/v1/status", bearer, "", 405, "no_such_method"},
		"operator exists": {"POST", "/v1/operators", bearer, `{"operator":{"name":"admin","role":"ROLE_ADMIN"}}`, 409, "exists"},
	} {
		code, header, out := do(c.method, c.path, c.authorization, c.body)
		if code != c.code || out["reason"] != c.reason || out["type"] != "https://portcullis.dev/problems/"+c.reason || out["status"] != float64(code) || out["title"] == "" || out["detail"] == "" {
			t.Errorf("%s: %d %v", name, code, out)
		}
		if header.Get("Content-Type") != "application/problem+json" || (code == 401) != (header.Get("WWW-Authenticate") != "") {
			t.Errorf("%s: headers %v", name, header)
		}
		if name == "not valid" {
			problems, _ := out["problems"].([]any)
			if len(problems) == 0 || problems[0].(map[string]any)["resource"] != "Application nowhere/a" {
				t.Errorf("%s: problems %v", name, out)
			}
		}
	}
	// Nobody may send much, nor be answered by plain HTTP.
	if code, _, _ := do("POST", "/v1/config:apply", "", strings.Repeat(" ", maxStrangerMessage+1)+app("default")); code != 401 && code != 400 && code != 413 {
		t.Errorf("a stranger's large body: %d", code)
	}
	resp, err := http.Get("http://" + r.rest + "/v1/status")
	if err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Errorf("plain HTTP: %d", resp.StatusCode)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	// Each RPC's path leads to a method that asks who is there: none is open.
	for rule := range rules(t) {
		method, path, _ := strings.Cut(rule, " ")
		for _, part := range []string{"{kind}", "{workspace}", "{name}", "{request_id}"} {
			path = strings.ReplaceAll(path, part, "x")
		}
		if code, _, out := do(method, path, "", "{}"); code != 401 {
			t.Errorf("%s to nobody: %d %v", rule, code, out)
		}
	}
}
