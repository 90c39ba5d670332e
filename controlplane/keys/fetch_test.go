package keys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// provider is an identity provider over TLS whose answers a test writes.
func provider(t *testing.T, handler http.HandlerFunc) (*Client, *configv1.Issuer) {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	return &Client{Transport: server.Client().Transport}, &configv1.Issuer{Issuer: "https://i", JwksUri: server.URL + "/keys"}
}

func TestFetch(t *testing.T) {
	good := setOf(public("p256", fields{"kid": "k"}))
	var accept, cookie atomic.Pointer[string]
	client, issuer := provider(t, func(w http.ResponseWriter, r *http.Request) {
		a, c := r.Header.Get("Accept"), r.Header.Get("Authorization")+r.Header.Get("Cookie")
		accept.Store(&a)
		cookie.Store(&c)
		w.Header().Set("Cache-Control", "public, max-age=1000")
		_, _ = w.Write(good)
	})
	now := time.Now()
	set, err := client.Fetch(t.Context(), issuer, nil, now)
	if err != nil || len(set.Keys) != 1 || set.Keys[0].Kid != "k" || set.Problem != "" {
		t.Fatal(set, err)
	}
	if !set.FetchedAt.AsTime().Equal(now.UTC()) || !set.RefreshAt.AsTime().Equal(now.Add(800*time.Second).UTC()) || !set.StaleAt.AsTime().Equal(now.Add(24*time.Hour).UTC()) {
		t.Errorf("times %v", set)
	}
	if !strings.Contains(*accept.Load(), "json") || *cookie.Load() != "" {
		t.Errorf("asked for %q with %q", *accept.Load(), *cookie.Load())
	}
	// A certificate of nobody's is refused: that is what https is for.
	if _, err := (&Client{AllowLoopback: true}).Fetch(t.Context(), issuer, nil, now); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown authority: %v", err)
	}
}

func TestFetchRefuses(t *testing.T) {
	good := string(setOf(public("p256", fields{"kid": "k"})))
	var elsewhere atomic.Int32
	previous := &configv1.KeySet{Keys: []*configv1.Key{{Kid: "old"}}, FetchedAt: timestamppb.New(time.Unix(1, 0)), StaleAt: timestamppb.New(time.Now().Add(time.Hour))}
	for name, handler := range map[string]http.HandlerFunc{
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"permanent": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusPermanentRedirect)
		},
		"redirect with body": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusSeeOther)
			_, _ = io.WriteString(w, good)
		},
		"not found":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); _, _ = io.WriteString(w, good) },
		"broken":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); _, _ = io.WriteString(w, good) },
		"no content": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) },
		"created":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201); _, _ = io.WriteString(w, good) },
		"one too many": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, good+strings.Repeat(" ", maxSetBytes+1-len(good)))
		},
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := io.WriteString(w, strings.Repeat("x", 4096)); err != nil {
					return
				}
			}
		},
		"cut short": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(good)))
			_, _ = io.WriteString(w, good[:len(good)/2])
		},
		"private key": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(setOf(jwkOf(private()["p256"], nil))) },
		"empty":       func(http.ResponseWriter, *http.Request) {},
	} {
		client, issuer := provider(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/keys" {
				elsewhere.Add(1)
				_, _ = io.WriteString(w, good)
				return
			}
			handler(w, r)
		})
		now := time.Now()
		set, err := client.Fetch(t.Context(), issuer, previous, now)
		if err == nil || set.Problem == "" || len(set.Keys) != 1 || set.Keys[0].Kid != "old" || set.StaleAt != previous.StaleAt || set.FetchedAt != previous.FetchedAt {
			t.Errorf("%s: %v, %v", name, set, err)
		}
		if at := set.RefreshAt.AsTime(); !at.Equal(now.Add(retryAfter).UTC()) {
			t.Errorf("%s: again at %v", name, at)
		}
	}
	if n := elsewhere.Load(); n > 0 {
		t.Errorf("%d redirects were followed", n)
	}
	exact := good + strings.Repeat(" ", maxSetBytes-len(good))
	client, issuer := provider(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, exact) })
	if _, err := client.Fetch(t.Context(), issuer, nil, time.Now()); err != nil {
		t.Errorf("256 KiB to the byte: %v", err)
	}
}

// transport answers without a network.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(status int, cache string, body []byte) (*http.Response, error) {
	return &http.Response{
		StatusCode: status, Status: fmt.Sprint(status), Header: http.Header{"Cache-Control": {cache}},
		Body: io.NopCloser(strings.NewReader(string(body))),
	}, nil
}

// dripping never ends, and never gives much.
type dripping struct{ ctx context.Context }

func (d dripping) Read(p []byte) (int, error) {
	select {
	case <-time.After(time.Second):
		p[0] = ' '
		return 1, nil
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
}

func (dripping) Close() error { return nil }

func TestFetchGivesUp(t *testing.T) {
	for name, rt := range map[string]transport{
		"silent": func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() },
		"slow": func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: dripping{r.Context()}}, nil
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			_, err := (&Client{Transport: rt}).Fetch(t.Context(), &configv1.Issuer{JwksUri: "https://i/keys"}, nil, start)
			if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != fetchTimeout {
				t.Errorf("%s: %v after %v", name, err, took)
			}
		})
	}
}

// Keys serve on while the provider is down, up to the hour when they are stale.
func TestFetchKeepsUntilStale(t *testing.T) {
	down := transport(func(*http.Request) (*http.Response, error) { return answer(503, "", nil) })
	client, issuer := &Client{Transport: down}, &configv1.Issuer{JwksUri: "https://i/keys"}
	now := time.Now()
	previous := &configv1.KeySet{Keys: []*configv1.Key{{Kid: "old"}}, StaleAt: timestamppb.New(now.Add(time.Hour))}
	for after, kept := range map[time.Duration]int{0: 1, time.Hour - 1: 1, time.Hour: 0, 2 * time.Hour: 0} {
		set, err := client.Fetch(t.Context(), issuer, previous, now.Add(after))
		if err == nil || len(set.Keys) != kept {
			t.Errorf("after %v: %v, %v", after, set, err)
		}
	}
	if set, err := client.Fetch(t.Context(), issuer, nil, now); err == nil || len(set.Keys) != 0 || set.Problem == "" {
		t.Errorf("without any before: %v, %v", set, err)
	}
}

func TestLifetimeOfKeys(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"": time.Hour, "no-store": time.Hour, "max-age=600": 10 * time.Minute, "public, Max-Age=\"600\" , immutable": 10 * time.Minute,
		"max-age=0": minTTL, "max-age=1": minTTL, "max-age=86400": maxTTL, "max-age=999999999": maxTTL,
		"max-age=-1": time.Hour, "max-age=99999999999999999999": time.Hour, "max-age=": time.Hour, "max-age": time.Hour, "s-maxage=1, max-age=x": time.Hour,
	} {
		if got := ttlOf(header); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}

func TestCheckURL(t *testing.T) {
	strict, loopback := &Client{}, &Client{AllowLoopback: true}
	for url, want := range map[string][2]bool{ // strict, with the flag
		"https://i.example/keys": {true, true}, "https://i.example:8443/keys?v=1": {true, true}, "HTTPS://i.example": {true, true},
		"http://127.0.0.1:80/keys": {false, true}, "http://[::1]/keys": {false, true}, "http://localhost/keys": {false, true}, "http://127.8.8.8/": {false, true},
		"http://i.example/keys": {}, "http://10.0.0.1/": {}, "http://169.254.169.254/latest": {}, "http://localhost.evil.example/": {}, "http://127.0.0.1.evil.example/": {},
		"http://0.0.0.0/": {}, "http://2130706433/": {}, "": {}, "/keys": {}, "i.example/keys": {}, "file:///etc/passwd": {}, "ftp://i.example/": {}, "https:///keys": {}, "https:i.example": {},
		"https://user:pass@i.example/": {}, "https://i.example/#x": {}, "http://user@127.0.0.1/": {}, "https://i.example/%zz": {}, "unix:///run/x": {}, "gopher://127.0.0.1/": {},
	} {
		if got := [2]bool{strict.CheckURL(url) == nil, loopback.CheckURL(url) == nil}; got != want {
			t.Errorf("%q: %v, want %v", url, got, want)
		}
	}
}

// A failure reads the same each time, though each connection has another port:
// otherwise each would be a revision of its own.
func TestFailuresReadTheSame(t *testing.T) {
	port := 40000
	client := &Client{Transport: transport(func(*http.Request) (*http.Response, error) {
		port++
		return nil, &net.OpError{Op: "read", Net: "tcp", Source: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: port}, Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 443}, Err: errors.New("connection reset by peer")}
	})}
	issuer := &configv1.Issuer{JwksUri: "https://i/keys"}
	first, _ := client.Fetch(t.Context(), issuer, nil, time.Now())
	second, _ := client.Fetch(t.Context(), issuer, nil, time.Now())
	if first.Problem != second.Problem || !strings.Contains(first.Problem, "10.0.0.2:443") || !strings.Contains(first.Problem, "reset") {
		t.Errorf("%q, then %q", first.Problem, second.Problem)
	}
}
