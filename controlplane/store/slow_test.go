//go:build slow

package store_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/controlplane/store/etcdtest"
	"portcullis.dev/portcullis/controlplane/store/storetest"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// TestSlowExternalSuite runs the suite on an external member; each test has a prefix
// of its own.
func TestSlowExternalSuite(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Config{TLS: true, Username: "pc", Password: "secret", Prefix: "/pc/"})
	var n atomic.Int32
	storetest.Run(t, func(t *testing.T) store.Store {
		return open(t, store.Config{
			Endpoints: c.Endpoints, TLS: c.TLS, Username: "pc", Password: "secret", Prefix: fmt.Sprintf("/pc/%d/", n.Add(1)),
		})
	})
}

// TestSlowLeaderKilled kills the leader of three members amid writes, twice: every
// acknowledged write is there, once and in order, for a reader and a watcher that
// were there all along; a minority neither commits nor proves anything.
func TestSlowLeaderKilled(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Config{Members: 3})
	s := open(t, store.Config{Endpoints: c.Endpoints})
	v0 := version(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	watched := make(chan config.Version, 10_000)
	var asOf atomic.Pointer[time.Time]
	wctx, unwatch := context.WithCancel(ctx)
	watchDone := make(chan struct{})
	go func() {
		defer close(watchDone)
		last := v0
		for e, err := range s.Watch(wctx, v0) {
			if err != nil {
				if wctx.Err() == nil {
					t.Errorf("watch: %v", err)
				}
				return
			}
			if e.Progress > 0 {
				asOf.Store(&e.AsOf)
			}
			if e.Version.Revision > 0 {
				if e.Previous != last {
					t.Errorf("event %v follows %v, not %v", e.Version, e.Previous, last)
				}
				last = e.Version
				watched <- last
			}
		}
	}()
	defer func() { unwatch(); <-watchDone }()

	var acknowledged []config.Version
	v := v0
	write := func(n int) {
		for range n {
			next, err := s.Apply(ctx, v, storetest.Upserts(storetest.Route("w", "r", fmt.Sprintf("/%d", len(acknowledged)))), store.Meta{})
			if err != nil {
				t.Fatalf("write %d: %v", len(acknowledged), err)
			}
			v = next
			acknowledged = append(acknowledged, v)
		}
	}
	for range 2 {
		write(20)
		leader := c.Leader()
		killed := make(chan struct{})
		go func() { defer close(killed); c.Stop(leader) }()
		write(40) // amid and after
		<-killed
		c.Restart(t, leader)
	}
	for i, want := range acknowledged {
		if got := <-watched; got != want {
			t.Fatalf("watched %v as commit %d, acknowledged was %v", got, i, want)
		}
	}
	if st, err := s.Load(ctx); err != nil || st.Version != v {
		t.Errorf("loaded %v, %v; acknowledged %v", st, err, v)
	}

	c.Stop(0)
	c.Stop(1)
	cut := time.Now()
	short, stop := context.WithTimeout(ctx, 3*time.Second)
	if got, err := s.Apply(short, v, storetest.Upserts(storetest.Route("w", "r", "/minority")), store.Meta{}); err == nil {
		t.Errorf("a minority committed %v", got)
	}
	stop()
	if p := asOf.Load(); p == nil || p.After(cut.Add(time.Second)) {
		t.Errorf("a minority proved to be current as of %v after it was cut", p)
	}
	c.Restart(t, 0)
	c.Restart(t, 1)
	for deadline := time.Now().Add(time.Minute); ; {
		st, err := s.Load(ctx)
		if err == nil {
			// The minority's write is known to have happened or not; either way there
			// is one order.
			if _, err := s.Apply(ctx, st.Version, storetest.Upserts(storetest.Route("w", "r", "/healed")), store.Meta{}); err != nil {
				t.Errorf("write after healing: %v", err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not healed: %v", err)
		}
	}
}

// TestSlowHundredThousandRoutes applies 100k routes at once, on both kinds of etcd.
func TestSlowHundredThousandRoutes(t *testing.T) {
	const n = 100_000
	stores := map[string]func(t *testing.T) *store.Etcd{
		"embedded": func(t *testing.T) *store.Etcd { return open(t, store.Config{Dir: t.TempDir()}) },
		"external": func(t *testing.T) *store.Etcd {
			return open(t, store.Config{Endpoints: etcdtest.Start(t, etcdtest.Config{}).Endpoints})
		},
	}
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			ctx := t.Context()
			v0 := version(t, s)
			rs := make([]*configv1.Resource, n)
			for i := range rs {
				rs[i] = storetest.Route("w", fmt.Sprintf("r%06d", i), fmt.Sprintf("/p/%d", i))
			}
			seen := make(chan int, 1)
			go func() {
				for e, err := range s.Watch(ctx, v0) {
					if err != nil || e.Version.Revision > 0 {
						seen <- len(e.Upserts)
						return
					}
					if st, err := s.Load(ctx); err != nil || len(st.Resources) != 0 && len(st.Resources) != n {
						t.Errorf("a load saw %d of %d, %v", len(st.Resources), n, err)
					}
				}
			}()
			start := time.Now()
			v, err := s.Apply(ctx, v0, storetest.Upserts(rs...), store.Meta{})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("applied in %v", time.Since(start))
			if got := <-seen; got != n {
				t.Errorf("watched %d", got)
			}
			t.Logf("watched after %v", time.Since(start))
			start = time.Now()
			st, err := s.Load(ctx)
			if err != nil || st.Version != v || len(st.Resources) != n {
				t.Fatalf("Load: %v", err)
			}
			t.Logf("loaded in %v", time.Since(start))
			start = time.Now()
			if _, err := s.Apply(ctx, v, storetest.Deletes(rs[0]), store.Meta{}); err != nil {
				t.Fatal(err)
			}
			t.Logf("next write, folding included, in %v", time.Since(start))
			if st, err = s.Load(ctx); err != nil || len(st.Resources) != n-1 {
				t.Errorf("Load: %d, %v", len(st.Resources), err)
			}
		})
	}
}

// TestSlowMillionCredentials loads a million credentials without holding them.
func TestSlowMillionCredentials(t *testing.T) {
	const n, batch = 1_000_000, 250_000
	s := open(t, store.Config{Dir: t.TempDir(), HistoryLimit: 1})
	ctx := t.Context()
	v, err := s.Apply(ctx, version(t, s), storetest.Upserts(storetest.Application("w", "app")), store.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for at := 0; at < n; at += batch {
		rs := make([]*configv1.Resource, batch)
		for i := range rs {
			x := at + i
			rs[i] = storetest.Credential("w", fmt.Sprintf("k%07d", x), "app", byte(x), byte(x>>8), byte(x>>16))
		}
		if v, err = s.Apply(ctx, v, storetest.Upserts(rs...), store.Meta{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.PutCredential(ctx, storetest.Credential("w", "one", "app", 1, 2, 3, 4), store.Meta{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("written in %v", time.Since(start))
	start = time.Now()
	if _, err := s.PutCredential(ctx, storetest.Credential("w", "two", "app", 1, 2, 3, 5), store.Meta{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("one more in %v", time.Since(start))
	start = time.Now()
	st, err := s.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	got := 0
	for _, err := range st.Credentials {
		if err != nil {
			t.Fatal(err)
		}
		if got++; got == n/2 {
			runtime.GC()
			runtime.ReadMemStats(&during)
		}
	}
	t.Logf("loaded in %v, %d MiB more live half way", time.Since(start), (int64(during.HeapAlloc)-int64(before.HeapAlloc))>>20)
	if got != n+2 {
		t.Errorf("%d credentials", got)
	}
	if grown := int64(during.HeapAlloc) - int64(before.HeapAlloc); grown > 100<<20 {
		t.Errorf("the load holds %d MiB", grown>>20)
	}
	if _, err := s.GetCredential(ctx, "w", "nobody"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("GetCredential: %v", err)
	}
}
