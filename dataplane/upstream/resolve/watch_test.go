package resolve

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answers is a lookup that says what it is told.
type answers struct {
	mu      sync.Mutex
	targets []Target
	err     error
	asked   int
}

func (a *answers) set(err error, hosts ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.targets, a.err = nil, err
	for _, h := range hosts {
		a.targets = append(a.targets, Target{Host: h})
	}
}

func (a *answers) lookup(context.Context, Query) ([]Target, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	return a.targets, a.err
}

func (a *answers) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

func hosts(s *State) []string {
	var out []string
	for _, t := range s.Targets {
		out = append(out, t.Host)
	}
	return out
}

func TestAChangeIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a answers
		a.set(nil, "10.0.0.1")
		h := NewHub(Config{Lookup: a.lookup})
		var told atomic.Int32
		w := h.Watch(Query{Name: "a"}, func() { told.Add(1) })
		<-w.First()
		synctest.Wait()
		if told.Load() != 1 || !cmp.Equal(hosts(w.State()), []string{"10.0.0.1"}) {
			t.Fatal("first answer:", told.Load(), w.State())
		}
		time.Sleep(time.Minute)
		if told.Load() != 1 {
			t.Error("told of nothing", told.Load())
		}
		// A tenth of jitter on ten seconds.
		if n := a.count(); n < 6 || n > 7 {
			t.Errorf("asked %d times in a minute", n)
		}
		a.set(nil, "10.0.0.1", "10.0.0.2")
		time.Sleep(12 * time.Second)
		if told.Load() != 2 || len(w.State().Targets) != 2 {
			t.Error("change:", told.Load(), w.State())
		}
		w.Close()
		w.Close()
		a.set(nil, "10.0.0.9")
		h.Close()
		if time.Sleep(time.Minute); told.Load() != 2 || len(h.lookups) != 0 {
			t.Error("told after Close")
		}
	})
}

func TestFailuresKeepWhatWasThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a answers
		broken := errors.New("server failure")
		a.set(broken)
		h := NewHub(Config{Lookup: a.lookup})
		defer h.Close()
		var told atomic.Int32
		w := h.Watch(Query{Name: "a", Refresh: time.Minute}, func() { told.Add(1) })
		defer w.Close()
		<-w.First()
		began := time.Now()
		if s := w.State(); s.Targets != nil || !errors.Is(s.Err, broken) || !s.Since.Equal(began) {
			t.Error(s)
		}
		a.set(nil, "10.0.0.1")
		// Never found: not only after a minute.
		time.Sleep(2 * time.Second)
		if s := w.State(); len(s.Targets) != 1 || s.Err != nil || !s.Since.IsZero() || told.Load() != 1 {
			t.Fatal(s, told.Load())
		}
		for _, err := range []error{broken, nil} {
			a.set(err) // without an error: an empty answer
			time.Sleep(70 * time.Second)
			failing := w.State()
			time.Sleep(3 * time.Minute)
			if s := w.State(); len(s.Targets) != 1 || s.Err == nil || !s.Since.Equal(failing.Since) || told.Load() != 1 {
				t.Error(s, told.Load())
			}
		}
		if s := w.State(); !errors.Is(s.Err, ErrEmpty) {
			t.Error(s.Err)
		}
	})
}

func TestEqualQueriesShareALookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a answers
		a.set(nil, "10.0.0.1")
		h := NewHub(Config{Lookup: a.lookup})
		one, two := h.Watch(Query{Name: "a"}, func() {}), h.Watch(Query{Name: "a", Refresh: DefaultRefresh}, func() {})
		other := h.Watch(Query{Name: "a", Service: true}, func() {})
		synctest.Wait()
		if a.count() != 2 {
			t.Errorf("asked %d times", a.count())
		}
		one.Close()
		other.Close()
		time.Sleep(12 * time.Second)
		if a.count() != 3 || len(h.lookups) != 1 {
			t.Errorf("asked %d times", a.count())
		}
		two.Close()
		h.Close()
	})
}

func TestClosingEndsALookupThatHangs(t *testing.T) {
	began := make(chan struct{})
	h := NewHub(Config{Lookup: func(ctx context.Context, _ Query) ([]Target, error) {
		close(began)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	w := h.Watch(Query{Name: "a"}, func() { t.Error("told of nothing") })
	<-began
	w.Close()
	h.Close()
	if w.State().Err != nil {
		t.Error("the end of the watch is no failure of the name")
	}
}
