package health

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

func TestProbeHTTP(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Host == "named.example" && r.URL.RequestURI() == "/ready?deep=1":
			w.WriteHeader(http.StatusNoContent)
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/", http.StatusFound)
		case r.URL.Path == "/hang":
			<-r.Context().Done()
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	plain := httptest.NewServer(handler)
	defer plain.Close()
	secure := httptest.NewTLSServer(handler)
	defer secure.Close()
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	trusted := &tls.Config{RootCAs: roots, ServerName: "example.com"}
	address := plain.Listener.Addr().String()
	for _, c := range []struct {
		name   string
		check  Check
		target Target
		want   string
	}{
		{"well", Check{Path: "/ready?deep=1", Host: "named.example"}, Target{Address: address}, ""},
		{"the endpoint's host", Check{Path: "/ready?deep=1"}, Target{Address: address, Host: "named.example"}, ""},
		{"unwell", Check{Path: "/"}, Target{Address: address}, "status 503"},
		{"named status", Check{Path: "/", Statuses: []uint32{200, 503}}, Target{Address: address}, ""},
		{"no redirect is followed", Check{Path: "/moved"}, Target{Address: address}, "status 302"},
		{"hangs", Check{Path: "/hang"}, Target{Address: address}, "timeout"},
		{"refuses", Check{Path: "/"}, Target{Address: refusing(t)}, "connection refused"},
		{"closes", Check{Path: "/"}, Target{Address: closing(t)}, "connection closed"},
		{"tls", Check{Path: "/ready?deep=1", Host: "named.example"}, Target{Address: secure.Listener.Addr().String(), TLS: trusted}, ""},
		{"untrusted", Check{Path: "/"}, Target{Address: secure.Listener.Addr().String(), TLS: &tls.Config{ServerName: "example.com"}}, "certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.check.Protocol = HTTP
			said(t, &c.check, c.target, c.want)
		})
	}
}

// said asks and compares what is seen.
func said(t *testing.T, c *Check, target Target, want string) {
	t.Helper()
	wait := 5 * time.Second
	if want == "timeout" {
		wait = 50 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	err := probe(ctx, c, target)
	if got := detailOf(0, err); (want == "") != (err == nil) || !strings.Contains(got, want) {
		t.Fatalf("%q (%v), expected %q", got, err, want)
	}
}

func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().String()
}

func closing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// What was sent is read first, so that it is an end and no reset.
			_, _ = c.Read(make([]byte, 4096))
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func TestProbeTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	said(t, &Check{}, Target{Address: l.Addr().String()}, "")
	said(t, &Check{}, Target{Address: refusing(t)}, "connection refused")
	// A port that accepts and never shakes hands serves nobody.
	said(t, &Check{}, Target{Address: l.Addr().String(), TLS: &tls.Config{ServerName: "x"}}, "timeout")
}

func TestProbeGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	state := grpchealth.NewServer()
	state.SetServingStatus("orders", healthv1.HealthCheckResponse_SERVING)
	state.SetServingStatus("carts", healthv1.HealthCheckResponse_NOT_SERVING)
	healthv1.RegisterHealthServer(server, state)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	defer func() { server.Stop(); <-served }()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for _, c := range []struct{ name, address, service, want string }{
		{"the server", l.Addr().String(), "", ""},
		{"a service", l.Addr().String(), "orders", ""},
		{"not serving", l.Addr().String(), "carts", "NOT_SERVING"},
		{"unknown", l.Addr().String(), "nobody", "NotFound"},
		{"refuses", refusing(t), "", "connection refused"},
		{"no gRPC", plain.Listener.Addr().String(), "", "connection closed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			said(t, &Check{Protocol: GRPC, Service: c.service}, Target{Address: c.address}, c.want)
		})
	}
}
