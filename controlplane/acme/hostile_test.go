package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// A certificate that lasts for centuries is not due from the start: a Duration holds
// no more than 292 years.
func TestCertificatesForCenturies(t *testing.T) {
	now := time.Now()
	for _, years := range []int{100, 147, 200, 293, 7000} {
		leaf := &x509.Certificate{NotBefore: now, NotAfter: now.AddDate(years, 0, 0)}
		issued := &configv1.IssuedCertificate{IssuedAt: timestamppb.New(now)}
		schedule(issued, leaf, nil)
		if at := issued.RefreshAt.AsTime(); at.Before(now.AddDate(60, 0, 0)) || at.After(leaf.NotAfter) || issued.RefreshAt.CheckValid() != nil {
			t.Errorf("for %d years: renewed at %s", years, at)
		}
	}
}

// An authority that issues for seconds has no order placed every second.
func TestCertificatesForSeconds(t *testing.T) {
	k := New(Config{})
	now := time.Now()
	spec := &configv1.ACME{Hostnames: []string{"a.example"}}
	issued := &configv1.IssuedCertificate{Ordered: proto.CloneOf(spec), IssuedAt: timestamppb.New(now)}
	schedule(issued, &x509.Certificate{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Second)}, nil)
	source := Source{Certificate: &configv1.Certificate{Acme: spec}, Issued: issued}
	if wait := k.due(source, now); wait < 4*time.Minute {
		t.Errorf("ordered again after %s", wait)
	}
	// What it was ordered for has changed: that is not the authority's doing.
	spec.Hostnames = []string{"b.example"}
	if wait := k.due(source, now); wait != 0 {
		t.Errorf("another order after %s", wait)
	}
}

// A certificate that the configuration refuses is a failed order like any other: it
// is told, and the next one waits. Otherwise the authority would be asked for one
// after the other, and nobody would hear why none is shown.
func TestACertificateThatIsRefusedIsAFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 90*24*time.Hour)
	w.refuse = func(issued *configv1.IssuedCertificate) error {
		if issued.Certificate == "" {
			return nil
		}
		return config.Problems{{Key: IssuedKey(key), Path: "spec.certificate", Reason: "certificate 3 certifies none of those before it"}}
	}
	w.replica("control-1", nil)
	failed := w.until("a failure", func(i *configv1.IssuedCertificate) bool { return i.GetFailures() > 0 })
	if !strings.Contains(failed.Problem, "certifies none") || failed.Certificate != "" || len(failed.Challenges) > 0 || time.Until(failed.RefreshAt.AsTime()) < time.Minute {
		t.Errorf("written as %v", failed)
	}
}

// A workspace whose authority keeps every order waiting does not keep the others
// from theirs.
func TestOneWorkspaceDoesNotTakeEveryTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		items := store.NewMemory()
		defer func() { _ = items.Close() }()
		sources := []Source{}
		for i := range 10 {
			sources = append(sources, Source{Key: config.Key{Kind: config.KindCertificate, Workspace: "slow", Name: fmt.Sprint(i)}})
		}
		sources = append(sources, Source{Key: config.Key{Kind: config.KindCertificate, Workspace: "w", Name: "site"}})
		for i := range sources {
			sources[i].Certificate = &configv1.Certificate{Acme: &configv1.ACME{}}
		}
		turn := make(chan struct{})
		var slow atomic.Int64
		k := New(Config{
			Locks: items.Items("locks"), Changed: make(chan struct{}), Sources: func() []Source { return sources },
			// What comes next would ask the authority.
			Find: func(ctx context.Context, key config.Key) (Source, bool, error) {
				if key.Workspace == "w" {
					close(turn)
				} else {
					slow.Add(1)
				}
				<-ctx.Done()
				return Source{}, false, ctx.Err()
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = k.Run(ctx) }()
		synctest.Wait()
		select {
		case <-turn:
		default:
			t.Error("the other workspace waits")
		}
		if slow := slow.Load(); slow != maxShare {
			t.Errorf("%d of the slow workspace's are under way, want %d", slow, maxShare)
		}
		cancel()
		<-done
	})
}

// However small its answers' number, an authority has us read no more than a bound.
func TestAnOrderReadsSoMuch(t *testing.T) {
	answer := strings.Repeat("x", maxAnswer)
	g := &guard{host: "ca.example", base: answers(func(*http.Request) *http.Response {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(answer))}
	})}
	for i := 1; ; i++ {
		req, err := http.NewRequest("GET", "https://ca.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := g.RoundTrip(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			err = errors.Join(err, resp.Body.Close())
		}
		if read := i * maxAnswer; (err != nil) != (read > maxRead) {
			t.Fatalf("after %d KiB: %v", read>>10, err)
		}
		if err != nil {
			return
		}
	}
}

// A replica that does not get at the newest configuration gives the certificate to
// one that does.
func TestAReplicaThatIsBehindLetsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		items := store.NewMemory()
		defer func() { _ = items.Close() }()
		source := Source{Key: key, Certificate: &configv1.Certificate{Acme: &configv1.ACME{}}}
		found := make(chan struct{}, 100)
		run := func(ctx context.Context, replica string, find func(context.Context) error) (done chan struct{}) {
			k := New(Config{
				Replica: replica, Locks: items.Items("locks"), Changed: make(chan struct{}), Sources: func() []Source { return []Source{source} },
				Find: func(ctx context.Context, _ config.Key) (Source, bool, error) { return Source{}, false, find(ctx) },
			})
			done = make(chan struct{})
			go func() { defer close(done); _ = k.Run(ctx) }()
			return done
		}
		ctx, cancel := context.WithCancel(t.Context())
		behind := run(ctx, "behind", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		synctest.Wait()
		other := run(ctx, "other", func(context.Context) error {
			found <- struct{}{}
			return errors.New("that will do")
		})
		select {
		case <-found:
		case <-time.After(10 * time.Minute):
			t.Error("nobody else gets to it")
		}
		cancel()
		<-behind
		<-other
	})
}
