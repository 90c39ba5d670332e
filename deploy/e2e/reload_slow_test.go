//go:build slow

package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/identity/certtest"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	// underReload is how many requests are served while configurations change.
	underReload = 1_000_000
	// batch requests are sent at once on a connection.
	batch = 32
)

// quick is an upstream that answers as fast as it can.
func quick(t *testing.T) string {
	answer := []byte(reply("200 OK", "ok"))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]struct{}{}
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = struct{}{}
			mu.Unlock()
			running.Go(func() {
				defer func() { _ = conn.Close() }()
				r := bufio.NewReader(conn)
				for {
					line, err := r.ReadSlice('\n')
					if err != nil {
						return
					}
					if len(line) > 2 {
						continue // of the head
					}
					if _, err := conn.Write(answer); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return "http://" + listener.Addr().String()
}

// revisionYAML is configuration number n: every answer of it says n, a route comes
// and another goes, and the certificate is another one.
func revisionYAML(n int, pairs []certtest.Pair) string {
	pair := pairs[n%len(pairs)]
	set := fmt.Sprintf("policies: [{headers: {response: {set: {X-Rev: %[1]q}}}}, {headers: {response: {set: {X-Too: %[1]q}}}}]", strconv.Itoa(n))
	return fmt.Sprintf("\n---\napiVersion: portcullis.dev/v1\nkind: Certificate\nmetadata: {name: shown}\nspec: {certificate: %q, privateKey: %q}\n", pair.CertPEM, pair.KeyPEM) +
		strings.ReplaceAll(routeYAML("fixed", "public: true", "matches: [{path: {prefix: /fixed}}]", set)+
			routeYAML("also", "public: true", "matches: [{path: {prefix: /also}}]", set)+
			routeYAML(fmt.Sprintf("passing-%d", n), "public: true", fmt.Sprintf("matches: [{path: {prefix: /passing-%d}}]", n), set), "{upstream: up}", "{upstream: quick}")
}

// loader sends requests on one connection until enough were served, and checks
// each answer.
type loader struct {
	served, revisions atomic.Int64
	// applying is the newest revision that may be seen.
	applying atomic.Int64
}

// answered reads one answer and returns its revision.
func answered(r *bufio.Reader) (int64, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("%q", line)
	}
	var rev, too int64
	seen, length := 0, -1
	for {
		if line, err = r.ReadSlice('\n'); err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		to := &rev
		value, ok := bytes.CutPrefix(line, []byte("X-Rev: "))
		if !ok {
			to = &too
			value, ok = bytes.CutPrefix(line, []byte("X-Too: "))
		}
		if ok {
			seen++
			if *to, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return 0, err
			}
		}
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(value)); err != nil {
				return 0, err
			}
		}
		if bytes.EqualFold(line, []byte("Connection: close")) {
			return 0, errors.New("the connection is closed")
		}
	}
	if seen != 2 || rev != too || length != 2 {
		return 0, fmt.Errorf("revisions %d and %d, said %d times, length %d", rev, too, seen, length)
	}
	var body [2]byte
	if _, err := io.ReadFull(r, body[:]); err != nil || string(body[:]) != "ok" {
		return 0, fmt.Errorf("%q %w", body, err)
	}
	return rev, nil
}

func (l *loader) run(conn net.Conn, path string) error {
	defer func() { _ = conn.Close() }()
	request := bytes.Repeat([]byte(head("GET", path)), batch)
	r, newest := bufio.NewReaderSize(conn, 32<<10), int64(0)
	for l.served.Load() < underReload {
		_ = conn.SetDeadline(time.Now().Add(patience))
		sent := make(chan error, 1)
		go func() {
			_, err := conn.Write(request)
			sent <- err
		}()
		for i := range batch {
			rev, err := answered(r)
			if err != nil {
				return fmt.Errorf("request %d of its batch: %w", i, err)
			}
			if rev < newest || rev > l.applying.Load() {
				return fmt.Errorf("an answer of revision %d behind one of %d, while %d is applied", rev, newest, l.applying.Load())
			}
			if rev > newest {
				newest = rev
				l.revisions.Add(1)
			}
		}
		if err := <-sent; err != nil {
			return err
		}
		l.served.Add(batch)
	}
	return nil
}

// A million requests on connections that stay open, in clear text and over TLS,
// while one configuration after the other is applied: none fails, each answer is of
// one revision, and revisions never go back.
func TestSlowReloadUnderLoad(t *testing.T) {
	s := startSecured(t, cluster.Config{}, "")
	pairs := make([]certtest.Pair, 4)
	for i := range pairs {
		pairs[i] = s.ca.Issue(t, certtest.Spec{Hosts: []string{gatewayHost}})
	}
	s.apply(fmt.Sprintf("apiVersion: portcullis.dev/v1\nkind: Upstream\nmetadata: {name: quick}\nspec: {endpoints: [{url: %q}]}\n", quick(t)) + revisionYAML(1, pairs))
	l := &loader{}
	l.applying.Store(1)
	trust := &tls.Config{RootCAs: s.ca.Pool(), ServerName: gatewayHost, NextProtos: []string{"http/1.1"}}
	const connections = 8
	ended := make(chan error, connections)
	began := time.Now()
	for i := range connections {
		conn, err := net.Dial("tcp", s.Addresses()[0])
		if i%4 == 3 {
			_ = conn.Close()
			conn, err = tls.Dial("tcp", s.https(), trust)
		}
		if err != nil {
			t.Fatal(err)
		}
		go func() { ended <- l.run(conn, []string{"/fixed", "/also"}[i%2]) }()
	}
	shaken := map[string]bool{}
	failures, running, n := 0, connections, 1
	for running > 0 {
		select {
		case err := <-ended:
			if running--; err != nil {
				failures++
				t.Errorf("after %d requests: %v", l.served.Load(), err)
			}
			continue
		default:
		}
		n++
		l.applying.Store(int64(n))
		change := documents(t, revisionYAML(n, pairs))
		change.Deletes = []*controlv1.ResourceKey{{Kind: "Route", Workspace: "default", Name: fmt.Sprintf("passing-%d", n-1)}}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		resp, err := s.admin.Apply(ctx, &adminv1.ApplyRequest{Change: change, WaitFor: durationpb.New(patience)})
		cancel()
		if err != nil || !resp.GetConvergence().GetConverged() {
			t.Fatalf("revision %d: %v %v", n, resp, err)
		}
		// New handshakes meet the certificate of the revision that runs.
		conn, err := tls.Dial("tcp", s.https(), trust)
		if err != nil {
			t.Fatal(err)
		}
		shaken[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		_ = conn.Close()
	}
	took := time.Since(began)
	t.Logf("%d requests in %v (%.0f/s), %d failed, %d revisions applied, seen to change %d times, %d certificates shown",
		l.served.Load(), took.Round(time.Millisecond), float64(l.served.Load())/took.Seconds(), failures, n, l.revisions.Load(), len(shaken))
	if l.served.Load() < underReload || n < 20 || len(shaken) != len(pairs) || l.revisions.Load() < int64(n) {
		t.Error("that is not what was to be tried")
	}
}
