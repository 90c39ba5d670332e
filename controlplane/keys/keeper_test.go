package keys

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// world is what several keepers share: the store with its claims, and the
// identity provider, seen from a bubble's clock.
type world struct {
	mu      sync.Mutex
	keys    *configv1.KeySet
	claimed time.Time
	writes  []*configv1.KeySet
	fetches []time.Time
	now, at int // fetches in flight, and the most there were
	keepers []*Keeper
	changed []chan struct{}
	// What the provider and the store do.
	serve    func() (*http.Response, error)
	takes    time.Duration
	claimErr error
	writeErr error
}

func (w *world) RoundTrip(*http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.fetches = append(w.fetches, time.Now())
	w.now++
	w.at = max(w.at, w.now)
	takes, serve := w.takes, w.serve
	w.mu.Unlock()
	time.Sleep(takes)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now--
	return serve()
}

func (w *world) claim(_ context.Context, _, _ string, interval time.Duration) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.claimErr != nil || time.Now().Before(w.claimed) {
		return false, w.claimErr
	}
	w.claimed = time.Now().Add(interval)
	return true, nil
}

func (w *world) write(set *configv1.KeySet) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writeErr != nil {
		return w.writeErr
	}
	w.keys = set
	w.writes = append(w.writes, set)
	for _, changed := range w.changed {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	return nil
}

// keeper starts a replica's keeper, which ends with the test.
func (w *world) keeper(t *testing.T) *Keeper {
	changed := make(chan struct{}, 1)
	k := &Keeper{
		Client: &Client{Transport: w}, Changed: changed, Claim: w.claim, Log: slog.New(slog.DiscardHandler),
		Write: func(_ context.Context, source Source, set *configv1.KeySet) error {
			if source.Workspace != "shop" || source.Name != "idp" {
				return errors.New("another issuer")
			}
			return w.write(set)
		},
		Sources: func() []Source {
			w.mu.Lock()
			defer w.mu.Unlock()
			return []Source{
				{Workspace: "shop", Name: "idp", Issuer: &configv1.Issuer{JwksUri: "https://i/keys"}, Keys: w.keys},
				{Workspace: "shop", Name: "inline", Issuer: &configv1.Issuer{Jwks: "{}"}},
			}
		},
	}
	w.mu.Lock()
	w.keepers, w.changed = append(w.keepers, k), append(w.changed, changed)
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = k.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return k
}

// missing has every node of every replica ask for a key, n times a second for d.
func (w *world) missing(d time.Duration, n int) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second / time.Duration(n)) {
		for _, k := range w.keepers {
			k.Missing("shop", "idp")
		}
	}
}

func (w *world) counts() (fetches, writes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.fetches), len(w.writes)
}

func (w *world) set(edit func(*world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	edit(w)
}

func serving(set []byte) func() (*http.Response, error) {
	return func() (*http.Response, error) { return answer(200, "max-age=3600", set) }
}

func down() (*http.Response, error) { return answer(503, "", nil) }

// However many nodes ask on however many replicas, an issuer is fetched at most
// once in 30 s and never twice at once.
func TestUnknownKidsMakeNoStorm(t *testing.T) {
	one, two := setOf(public("p256", fields{"kid": "1"})), setOf(public("p384", fields{"kid": "2"}))
	synctest.Test(t, func(t *testing.T) {
		w := &world{serve: serving(one), takes: 5 * time.Second}
		w.keeper(t)
		w.keeper(t)
		w.missing(10*time.Minute, 10)
		w.mu.Lock()
		for i, at := range w.fetches[1:] {
			if gap := at.Sub(w.fetches[i]); gap < retryAfter {
				t.Errorf("fetched again after %v", gap)
			}
		}
		if n := len(w.fetches); n < 12 || n > 21 || w.at != 1 || len(w.writes) != 1 {
			t.Errorf("%d fetches in ten minutes, %d at once, %d writes", n, w.at, len(w.writes))
		}
		w.mu.Unlock()
		// A rotated key is there soon after the first token that names it.
		w.set(func(w *world) { w.serve = serving(two) })
		w.missing(2*time.Minute, 1)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.writes) != 2 || w.keys.Keys[0].Kid != "2" {
			t.Errorf("%d writes, keys %v", len(w.writes), w.keys)
		}
	})
}

// A provider that stays down is asked again and again, and costs one revision;
// the keys last until they are stale, and come back with the provider.
func TestProviderDown(t *testing.T) {
	good := setOf(public("p256", fields{"kid": "1"}))
	synctest.Test(t, func(t *testing.T) {
		w := &world{serve: serving(good)}
		w.keeper(t)
		time.Sleep(time.Second)
		if f, n := w.counts(); f != 1 || n != 1 || len(w.keys.Keys) != 1 {
			t.Fatalf("%d fetches, %d writes", f, n)
		}
		w.set(func(w *world) { w.serve = down })
		time.Sleep(23 * time.Hour)
		w.mu.Lock()
		if len(w.writes) != 2 || w.keys.Problem == "" || len(w.keys.Keys) != 1 || len(w.fetches) < 1000 {
			t.Errorf("down for 23 h: %d writes, %d fetches, %v", len(w.writes), len(w.fetches), w.keys)
		}
		w.mu.Unlock()
		time.Sleep(2 * time.Hour)
		w.mu.Lock()
		if len(w.writes) != 3 || len(w.keys.Keys) != 0 || w.keys.Problem == "" {
			t.Errorf("down for 25 h: %d writes, %v", len(w.writes), w.keys)
		}
		w.mu.Unlock()
		w.set(func(w *world) { w.serve = serving(good) })
		time.Sleep(2*retryAfter + time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.writes) != 4 || len(w.keys.Keys) != 1 || w.keys.Problem != "" {
			t.Errorf("up again: %d writes, %v", len(w.writes), w.keys)
		}
	})
}

// While the provider serves the same keys they are refreshed, and never grow
// stale, at the cost of few revisions.
func TestKeysStayFresh(t *testing.T) {
	good := setOf(public("p256", fields{"kid": "1"}))
	synctest.Test(t, func(t *testing.T) {
		w := &world{serve: serving(good)}
		w.keeper(t)
		for range 7 * 24 {
			time.Sleep(time.Hour)
			w.mu.Lock()
			if !w.keys.StaleAt.AsTime().After(time.Now()) || len(w.keys.Keys) != 1 {
				t.Fatalf("stale at %v: %v", time.Now(), w.keys)
			}
			w.mu.Unlock()
		}
		if f, n := w.counts(); f < 7*24 || n > 7*24+1 {
			t.Errorf("a week took %d fetches and %d revisions", f, n)
		}
	})
}

// What fails on the store's side is tried again.
func TestStoreDown(t *testing.T) {
	good := setOf(public("p256", fields{"kid": "1"}))
	synctest.Test(t, func(t *testing.T) {
		w := &world{serve: serving(good), claimErr: errors.New("store down")}
		w.keeper(t)
		time.Sleep(5 * time.Minute)
		if f, n := w.counts(); f != 0 || n != 0 {
			t.Errorf("without a claim: %d fetches, %d writes", f, n)
		}
		w.set(func(w *world) { w.claimErr, w.writeErr = nil, errors.New("store down") })
		time.Sleep(5 * time.Minute)
		w.set(func(w *world) { w.writeErr = nil })
		time.Sleep(2*retryAfter + time.Second)
		if _, n := w.counts(); n != 1 {
			t.Errorf("%d writes after the store came back", n)
		}
	})
}
