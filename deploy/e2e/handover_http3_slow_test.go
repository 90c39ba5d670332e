//go:build slow

package e2e_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"portcullis.dev/portcullis/pkg/identity/certtest"
)

// In processes as they are deployed, a node is replaced twice while clients of
// HTTP/3 ask and one downloads slowly: no request fails, the download comes whole,
// and a limit that is spent stays spent.
func TestSlowHandOverOfHTTP3(t *testing.T) {
	d := deploy(t, 0)
	clear, secure := freeAddress(t), freeAddress(t)
	d.nodes = []string{clear}
	d.run("n1", d.cli(0, "", "join-token", "create"), "dataplane", "--name", "n1", "--data-dir", d.path("n1"), "--control", d.control[0], "--join-token", "-",
		"--listen", clear, "--listen", "https="+secure, "--metrics-listen", "", "--nats-urls", d.natsURLs[0], "--nats-insecure-plaintext", "--drain", "1m")
	pieces := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/public/long" {
			_, _ = io.WriteString(w, "whole")
			return
		}
		// The head, at once.
		_ = http.NewResponseController(w).Flush()
		for {
			select {
			case _, more := <-pieces:
				if !more {
					return
				}
			case <-r.Context().Done():
				return
			}
			_, _ = io.WriteString(w, "x")
			_ = http.NewResponseController(w).Flush()
		}
	}))
	t.Cleanup(up.Close)
	ca := certtest.New(t, "public")
	pair := ca.Issue(t, certtest.Spec{Hosts: []string{gatewayHost}})
	d.cli(0, fmt.Sprintf(`
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default}
spec: {listeners: [{name: http}, {name: https, http3: true, tls: {certificates: [shown]}}]}
---
apiVersion: portcullis.dev/v1
kind: Certificate
metadata: {name: shown}
spec: {certificate: %q, privateKey: %q}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: %q}]}
`, pair.CertPEM, pair.KeyPEM, up.URL)+routeYAML("limited", "public: true", "matches: [{path: {prefix: /limited}}]",
		"policies: [{rateLimit: {key: \"'one'\", limits: [{name: all, requests: 6, window: 1h}]}}]")+"---"+public, "apply", "-f", "-")
	d.expect("/public", "", 200, "")
	for range 6 {
		d.expect("/limited", "", 200, "")
	}
	d.expect("/limited", "", 429, "limit_exceeded")

	dial := func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
		return quic.DialAddrEarly(ctx, secure, c, q)
	}
	client := func() *http.Client {
		transport := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), ServerName: gatewayHost}, Dial: dial}
		t.Cleanup(func() { _ = transport.Close() })
		return &http.Client{Transport: transport}
	}
	ask := func(c *http.Client) error {
		resp, err := c.Get("https://" + gatewayHost + "/public")
		if own := (*http3.Error)(nil); errors.As(err, &own) && !own.Remote && own.ErrorCode == http3.ErrCodeNoError {
			// On a GOAWAY the library closes the connection on which it just begins one.
			resp, err = c.Get("https://" + gatewayHost + "/public")
		}
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != 200 || string(body) != "whole") {
			err = fmt.Errorf("%d %q", resp.StatusCode, body)
		}
		return err
	}
	d.until("HTTP/3", func() error { return ask(client()) })
	long, err := client().Get("https://" + gatewayHost + "/public/long")
	d.must("a download", err)
	defer long.Body.Close()
	piece := func() {
		t.Helper()
		select {
		case pieces <- struct{}{}:
		case <-time.After(patience):
			t.Fatal("nobody downloads")
		}
		var b [1]byte
		if _, err := io.ReadFull(long.Body, b[:]); err != nil {
			t.Fatalf("the download: %v", err)
		}
	}
	var asked, failed atomic.Int64
	var calling sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		calling.Go(func() {
			for c := client(); ; {
				select {
				case <-stop:
					return
				default:
				}
				asked.Add(1)
				if err := ask(c); err != nil && failed.Add(1) <= 5 {
					t.Errorf("a request failed: %v", err)
				}
			}
		})
	}
	node := d.running["n1"]
	pids := []int{node.cmd.Process.Pid}
	t.Cleanup(func() {
		for _, pid := range pids[1:] {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	for i := range 2 {
		piece()
		d.must("SIGUSR2", syscall.Kill(pids[i], syscall.SIGUSR2))
		d.until("a successor", func() error {
			found := pidOf.FindAllStringSubmatch(node.said.String(), -1)
			if len(found) != i+1 {
				return errors.New(node.said.String())
			}
			pid, err := strconv.Atoi(found[i][1])
			pids = append(pids, pid)
			return err
		})
		piece()
		d.expect("/limited", "", 429, "limit_exceeded")
		before := asked.Load()
		d.until("load", func() error {
			if asked.Load() < before+500 {
				return errors.New("not yet")
			}
			return nil
		})
		d.must("a new connection", ask(client()))
	}
	piece()
	close(pieces)
	if rest, err := io.ReadAll(long.Body); err != nil || len(rest) > 0 {
		t.Errorf("the download ended with %q, %v", rest, err)
	}
	close(stop)
	calling.Wait()
	t.Logf("%d requests over 2 hand-overs, %d failed", asked.Load(), failed.Load())
	if t.Failed() {
		t.Log(node.said.String())
	}
}
