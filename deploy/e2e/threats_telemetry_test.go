package e2e_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/telemetry"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// collector is an OTLP receiver that keeps the spans it gets.
type collector struct {
	coltrace.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []*tracev1.Span
}

func (c *collector) Export(_ context.Context, in *coltrace.ExportTraceServiceRequest) (*coltrace.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range in.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			c.spans = append(c.spans, scope.Spans...)
		}
	}
	return &coltrace.ExportTraceServiceResponse{}, nil
}

// of returns the span of a request, and its attributes.
func (c *collector) of(requestID string) (*tracev1.Span, map[string]*commonv1.AnyValue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, span := range c.spans {
		attributes := map[string]*commonv1.AnyValue{}
		for _, kv := range span.Attributes {
			attributes[kv.Key] = kv.Value
		}
		if attributes["portcullis.request_id"].GetStringValue() == requestID {
			return span, attributes
		}
	}
	return nil, nil
}

func startCollector(t *testing.T) (*collector, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, server := &collector{}, grpc.NewServer()
	coltrace.RegisterTraceServiceServer(server, c)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return c, "http://" + listener.Addr().String()
}

// One refusal, seen four ways: the answer, the span, the counter and the access
// log agree, and none of them holds a secret or grows with who calls.
func TestThreatTelemetry(t *testing.T) {
	spans, endpoint := startCollector(t)
	log := &logBuffer{}
	h := start(t, cluster.Config{Telemetry: telemetry.Config{Endpoint: endpoint}, AccessLog: log, MetricsListen: "127.0.0.1:0"})
	k := newES256(t, "k1")
	applied := h.apply("apiVersion: portcullis.dev/v1\nkind: Gateway\nmetadata: {name: default}\nspec: {tracing: {ratio: 1}}\n---\n" +
		"apiVersion: portcullis.dev/v1\nkind: Application\nmetadata: {name: app}\nspec: {description: test}" +
		issuerWith(k) + guarded("scoped", "ext", "https://api.example", ", {authorize: {rules: [{name: r, scopes: [admin]}]}}") +
		routeYAML("users", "matches: [{path: {template: '/users/{id}'}}]", "policies: [{jwt: {issuers: [ext], audiences: [https://api.example]}}]") +
		routeYAML("keyed", "matches: [{path: {prefix: /keyed}}]", "policies: [{apiKey: {}}]"))
	key, err := h.admin.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Application: "app", WaitFor: nil})
	if err != nil {
		t.Fatal(err)
	}
	token := k.token("sub", "subject-of-the-token", "client_id", "client-of-the-token", "jti", "jti-of-the-token")
	const caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	denied := h.get(0, "/scoped/x?password=query-secret", append(authorization(token), "Traceparent", caller, "Cookie", "session=cookie-secret", "Baggage", "k=baggage-secret")...)
	refused(t, "without the scope", denied, 403, "scope_missing")
	h.untouched(t, "without the scope")
	allowed := h.get(0, "/users/4711?password=query-secret", authorization(token)...)
	if allowed.Status != 200 {
		t.Fatalf("%+v", allowed)
	}
	reached := h.up.take()
	h.until("the key is known", func() error {
		if a := h.get(0, "/keyed", "X-API-Key", key.Key); a.Status != 200 {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	for _, s := range h.up.take() {
		if s.Header.Get("X-Api-Key") != "" {
			t.Error("the API key reached the upstream")
		}
	}
	malformed := h.one(t, request("GET", "/scoped//x", "Host: a"))

	span := func(id string) (got *tracev1.Span, attributes map[string]*commonv1.AnyValue) {
		h.until("the span of "+id, func() error {
			if got, attributes = spans.of(id); got == nil {
				return fmt.Errorf("none yet")
			}
			return nil
		})
		return got, attributes
	}
	got, attributes := span(denied.RequestID)
	for name, want := range map[string]string{"http.route": "/scoped", "portcullis.reason": "scope_missing", "portcullis.route": "default/scoped", "http.request.method": "GET", "url.path": "/scoped/x"} {
		if value := attributes[name].GetStringValue(); value != want {
			t.Errorf("the span's %s is %q, want %q", name, value, want)
		}
	}
	if attributes["portcullis.revision"].GetIntValue() < applied.Version.Revision || attributes["http.response.status_code"].GetIntValue() != 403 {
		t.Errorf("the span says revision %v, status %v", attributes["portcullis.revision"], attributes["http.response.status_code"])
	}
	if trace := fmt.Sprintf("%x", got.TraceId); trace != denied.TraceID {
		t.Errorf("the span's trace is %s, the refusal's %s", trace, denied.TraceID)
	}
	if strings.Contains(caller, denied.TraceID) {
		t.Error("an untrusted caller chose the trace id")
	}
	if len(got.Links) != 1 || fmt.Sprintf("%x", got.Links[0].TraceId) != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("the caller's trace is not linked: %v", got.Links)
	}
	got, attributes = span(allowed.Header.Get("X-Request-Id"))
	if attributes["http.route"].GetStringValue() != "/users/{id}" || attributes["portcullis.reason"] != nil || attributes["portcullis.upstream"].GetStringValue() != "up" {
		t.Errorf("the span of the allowed request: %v", attributes)
	}
	if len(reached) != 1 || !strings.HasPrefix(reached[0].Header.Get("Traceparent"), fmt.Sprintf("00-%x-", got.TraceId)) || reached[0].Header.Get("Baggage") != "" {
		t.Errorf("the upstream was told another trace: %v", reached)
	}

	metrics := h.metrics(0)
	for _, want := range []string{`portcullis_reason="scope_missing"`, `portcullis_reason="request_malformed"`, `http_route="default/scoped"`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no metric has %s", want)
		}
	}
	allowedLabels := map[string]bool{}
	for _, name := range strings.Fields("http_route http_request_method url_scheme http_response_status_code error_type portcullis_workspace portcullis_status_class portcullis_reason le otel_metric_overflow network_protocol_version") {
		allowedLabels[name] = true
	}
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "http_server") || strings.HasPrefix(line, "portcullis_requests") {
			for _, label := range regexp.MustCompile(`[{,]([a-z_]+)="`).FindAllStringSubmatch(line, -1) {
				if !allowedLabels[label[1]] {
					t.Errorf("a label that may grow with who calls: %s", line)
				}
			}
		}
	}

	line := log.line(h, denied.RequestID)
	for name, want := range map[string]any{"reason": "scope_missing", "route": "scoped", "workspace": "default", "consumer": "client-of-the-token", "status": 403.0, "trace_id": denied.TraceID, "path": "/scoped/x", "node": "node-1"} {
		if line[name] != want {
			t.Errorf("the log's %s is %v, want %v", name, line[name], want)
		}
	}
	if revision, _ := line["revision"].(float64); int64(revision) < applied.Version.Revision {
		t.Errorf("the log's revision is %v, applied was %d", line["revision"], applied.Version.Revision)
	}
	log.line(h, malformed.Header.Get("X-Request-Id"))
	why, err := h.admin.Why(t.Context(), &adminv1.WhyRequest{RequestId: denied.RequestID})
	if err != nil {
		t.Fatal(err)
	}
	spans.mu.Lock()
	told := fmt.Sprint(spans.spans)
	spans.mu.Unlock()
	for where, text := range map[string]string{"log": log.String(), "metrics": metrics, "spans": told, "decision": why.String(), "answer": denied.Body + fmt.Sprint(denied.Header)} {
		for what, secret := range map[string]string{"token": token, "signature": token[strings.LastIndex(token, ".")+1:], "API key": key.Key, "query": "query-secret", "cookie": "cookie-secret", "baggage": "baggage-secret", "basic": base64.StdEncoding.EncodeToString([]byte(key.Key))} {
			if strings.Contains(text, secret) {
				t.Errorf("the %s holds the %s", where, what)
			}
		}
	}
	for _, who := range []string{"subject-of-the-token", "client-of-the-token", "jti-of-the-token", "4711", `app"`} {
		if strings.Contains(metrics, who) {
			t.Errorf("the metrics hold %q", who)
		}
	}
	if strings.Contains(denied.Body, h.up.URL) {
		t.Error("the refusal names the upstream")
	}
}
