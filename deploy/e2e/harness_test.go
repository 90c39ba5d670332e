// Package e2e_test drives whole clusters over the wire: real etcd, real NATS,
// real connections. It is the one package of tests that links all of them.
package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/controlplane/acme/acmetest"
	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, acmetest.Leak(),
		// A stage of a toxic link waits for ever for the next one when that has closed;
		// nothing of ours runs in it.
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run"))
}

// patience bounds every wait; it is long because the machine may be slow, and no
// test waits for it when all goes well.
const patience = 30 * time.Second

// harness is a running cluster and whoever talks to it.
type harness struct {
	*cluster.Cluster
	t      *testing.T
	admin  adminv1.AdminServiceClient
	client *http.Client
	// up records what reached it.
	up *recorder
}

// start runs a cluster with one recording upstream named "up"; the test's end
// checks that the live nodes agree and stops it.
func start(t *testing.T, cfg cluster.Config) *harness {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Log == nil && os.Getenv("E2E_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if cfg.Drain == 0 {
		cfg.Drain = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := cluster.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	h := &harness{Cluster: c, t: t, up: newRecorder(t), client: &http.Client{
		Transport: transport, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := c.Stop(); err != nil {
			t.Errorf("stopping the cluster: %v", err)
		}
	})
	h.admin = h.operator(c.Credential())
	h.apply(fmt.Sprintf(`
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: %q}], shared: true}
`, h.up.URL))
	t.Cleanup(func() {
		// Only while the control plane is there to say what is newest.
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if !t.Failed() {
			if err := c.Converge(ctx); err != nil {
				t.Errorf("the live nodes do not agree at the end: %v", err)
			}
		}
	})
	return h
}

type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (bearer) RequireTransportSecurity() bool { return true }

// operator returns a client of the admin API with a credential.
func (h *harness) operator(credential string) adminv1.AdminServiceClient {
	h.t.Helper()
	secure, err := identity.ClientAdmin(h.Authorities())
	if err != nil {
		h.t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+h.AdminAddress(), grpc.WithTransportCredentials(credentials.NewTLS(secure)),
		grpc.WithPerRPCCredentials(bearer(credential)), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(128<<20), grpc.MaxCallRecvMsgSize(128<<20)))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = conn.Close() })
	return adminv1.NewAdminServiceClient(conn)
}

// documents decodes YAML.
func documents(t *testing.T, yaml string) *adminv1.Change {
	t.Helper()
	docs, err := config.Decode("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	change := &adminv1.Change{}
	for _, doc := range docs {
		change.Upserts = append(change.Upserts, doc.Resource)
	}
	return change
}

// apply commits documents and waits until every live node runs them.
func (h *harness) apply(yaml string) *adminv1.ApplyResponse {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	resp, err := h.admin.Apply(ctx, &adminv1.ApplyRequest{Change: documents(h.t, yaml), WaitFor: durationpb.New(patience)})
	if err != nil {
		h.t.Fatal(err)
	}
	if resp.Convergence != nil && !resp.Convergence.Converged {
		h.t.Fatalf("not converged: %v", resp.Convergence.Behind)
	}
	return resp
}

// mint signs a token of the issuer local.
func (h *harness) mint(sub string, scopes ...string) string {
	h.t.Helper()
	resp, err := h.admin.MintToken(h.t.Context(), &adminv1.MintTokenRequest{
		Subject: sub, Scopes: scopes, Audiences: []string{"https://api.example"}, Ttl: durationpb.New(10 * time.Minute),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.Token
}

// answer is what a client got.
type answer struct {
	Status int
	Header http.Header
	Body   string
	// Reason and RequestID are a refusal's.
	Reason    string `json:"reason"`
	RequestID string `json:"request_id"`
	TraceID   string `json:"trace_id"`
}

// get requests a path of node i; fields are pairs of name and value.
func (h *harness) get(i int, path string, fields ...string) answer {
	h.t.Helper()
	return h.do(i, http.MethodGet, path, "", fields...)
}

func (h *harness) do(i int, method, path, body string, fields ...string) answer {
	h.t.Helper()
	a, err := h.try(i, method, path, body, fields...)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

func (h *harness) try(i int, method, path, body string, fields ...string) (answer, error) {
	req, err := http.NewRequest(method, "http://"+h.Addresses()[i]+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for f := 0; f+1 < len(fields); f += 2 {
		if strings.EqualFold(fields[f], "host") {
			req.Host = fields[f+1]
			continue
		}
		req.Header.Add(fields[f], fields[f+1])
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{Status: resp.StatusCode, Header: resp.Header, Body: string(data)}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
		if err := json.Unmarshal(data, &a); err != nil {
			return a, err
		}
	}
	return a, nil
}

// raw sends bytes to node i and returns all that comes back until the node
// closes or nothing has come for a moment.
func (h *harness) raw(i int, text string) string {
	h.t.Helper()
	conn, err := net.Dial("tcp", h.Addresses()[i])
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, text); err != nil {
		return ""
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	var got bytes.Buffer
	if _, err := io.Copy(&got, conn); err != nil && !errors.Is(err, net.ErrClosed) {
		// A reset after the answer is an answer too.
		return got.String()
	}
	return got.String()
}

// until polls until f returns nil, and fails with its last error.
func (h *harness) until(what string, f func() error) {
	h.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			h.t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// seen is a request as the upstream received it.
type seen struct {
	Method, Target, Host string
	Header               http.Header
	Body                 string
}

// recorder is an upstream that remembers what reached it.
type recorder struct {
	*httptest.Server
	mu       sync.Mutex
	requests []seen
	// handle, when set, answers; it is set before requests come.
	handle http.HandlerFunc
}

func newRecorder(t *testing.T) *recorder {
	r := &recorder{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(req.Body, 1<<20))
		r.mu.Lock()
		r.requests = append(r.requests, seen{req.Method, req.RequestURI, req.Host, req.Header.Clone(), string(body)})
		handle := r.handle
		r.mu.Unlock()
		if handle != nil {
			handle(w, req)
			return
		}
		_, _ = io.WriteString(w, "ok "+req.RequestURI)
	}))
	t.Cleanup(r.Close)
	return r
}

// take returns what has been recorded and forgets it.
func (r *recorder) take() []seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.requests
	r.requests = nil
	return got
}
