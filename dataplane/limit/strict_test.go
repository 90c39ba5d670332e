package limit

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// asking is three nodes that know each other, and questions between them.
type asking struct {
	nodes map[string]*Limiter
	down  map[string]bool
	asked int
}

func newAsking(t *testing.T) *asking {
	t.Helper()
	a := &asking{nodes: map[string]*Limiter{}, down: map[string]bool{}}
	for _, name := range []string{"a", "b", "c"} {
		a.nodes[name] = New(Config{Node: name, Boot: 1, Start: start, AskTimeout: time.Millisecond,
			AskOwner: func(ctx context.Context, node string, ask *busv1.Ask) (*busv1.Answer, error) {
				a.asked++
				if a.down[node] {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return a.nodes[node].Answer(ask, at(0)), nil
			}})
	}
	for _, l := range a.nodes {
		for name := range a.nodes {
			l.Receive(name, 1, &busv1.Spent{Now: 1}, at(0))
		}
	}
	return a
}

// ownedBy finds a key with that owner.
func (a *asking) ownedBy(owner string) Key {
	for i := 0; ; i++ {
		if k := KeyOf(fmt.Sprint(i)); a.nodes["a"].Owner(k) == owner {
			return k
		}
	}
}

func strictItem(k Key, burst float64) Item {
	return Item{Key: k, Cost: 1, Rate: Rate{PerSecond: 0.001, Burst: burst, OnPartition: configv1.OnPartition_ON_PARTITION_STRICT}}
}

func TestOwner(t *testing.T) {
	a := newAsking(t)
	count := map[string]int{}
	for i := range 3000 {
		k := KeyOf(fmt.Sprint(i))
		owner := a.nodes["a"].Owner(k)
		if b, c := a.nodes["b"].Owner(k), a.nodes["c"].Owner(k); owner != b || owner != c {
			t.Fatalf("nodes disagree: %s, %s, %s", owner, b, c)
		}
		count[owner]++
	}
	for n, c := range count {
		if c < 800 || c > 1200 {
			t.Errorf("%s owns %d of 3000", n, c)
		}
	}
}

// However the requests are spread, the owner's one bucket decides, with no
// exchange of totals at all.
func TestStrict(t *testing.T) {
	a := newAsking(t)
	item := strictItem(a.ownedBy("b"), 10)
	granted := 0
	for i := range 60 {
		d, n := a.nodes[[]string{"a", "b", "c"}[i%3]].SpendStrict(t.Context(), []Item{item}, at(0))
		if n != 0 {
			t.Fatalf("item %d", n)
		}
		if d.Granted {
			granted++
		} else if d.RetryAfter <= 0 {
			t.Error("refused with nothing to wait for")
		}
	}
	if granted != 10 {
		t.Errorf("granted %d of a burst of 10", granted)
	}
}

// An owner that does not answer costs one timeout in 250 ms, and the node decides.
func TestStrictFallsBack(t *testing.T) {
	a := newAsking(t)
	item := strictItem(a.ownedBy("b"), 10)
	a.down["b"] = true
	granted := 0
	for i := range 30 {
		if d, _ := a.nodes["a"].SpendStrict(t.Context(), []Item{item}, at(time.Duration(i)*time.Millisecond)); d.Granted {
			granted++
		}
	}
	if granted != 10 || a.asked != 1 {
		t.Errorf("granted %d, asked %d times, want 10 and 1", granted, a.asked)
	}
	a.nodes["a"].SpendStrict(t.Context(), []Item{item}, at(askPause+time.Millisecond))
	if st := a.nodes["a"].Stats(); a.asked != 2 || st.Asked != 2 || st.Unanswered != 2 {
		t.Errorf("asked %d times after the pause; stats %+v", a.asked, st)
	}
}

// All or nothing, over owners and local limits alike.
func TestStrictGivesBack(t *testing.T) {
	a := newAsking(t)
	wide := strictItem(a.ownedBy("b"), 10)
	narrow := strictItem(a.ownedBy("c"), 2)
	local := Item{Key: KeyOf("local"), Cost: 1, Rate: Rate{Burst: 10}}
	items := []Item{wide, local, narrow}
	for i := range 8 {
		d, n := a.nodes["a"].SpendStrict(t.Context(), items, at(0))
		if d.Granted != (i < 2) || !d.Granted && n != 2 {
			t.Errorf("request %d: %+v from item %d", i, d, n)
		}
	}
	if got := left(a.nodes["b"], wide.Key, wide.Rate, 0); got != 8 {
		t.Errorf("the owner of the wide limit has %v left, want 8", got)
	}
	if got := left(a.nodes["a"], local.Key, local.Rate, 0); got != 8 {
		t.Errorf("the local limit has %v left, want 8", got)
	}
	local.Rate.Burst, local.Key = 0.5, KeyOf("closed")
	asked := a.asked
	if d, n := a.nodes["a"].SpendStrict(t.Context(), []Item{wide, local}, at(0)); d.Granted || n != 1 || a.asked != asked {
		t.Errorf("%+v from item %d: a local refusal must come before any question", d, n)
	}
}

func TestAnswerRefusesNonsense(t *testing.T) {
	l := alone()
	k := KeyOf("k")
	for _, ask := range []*busv1.Ask{nil, {}, {Key: k[:3], Cost: 1, Rate: 1, Capacity: 1}, {Key: k[:], Cost: 1, Rate: -1, Capacity: 5}} {
		if l.Answer(ask, at(0)).GetGranted() {
			t.Errorf("granted %v", ask)
		}
	}
	l.Answer(&busv1.Ask{Key: k[:], Cost: -1 << 63, Rate: 1, Capacity: 5}, at(0)) // gives back what was never taken
	if d := l.Spend(k, Rate{PerSecond: 1, Burst: 5}, 6, at(0)); d.Granted {
		t.Error("giving back filled a bucket over its capacity")
	}
	err := fmt.Errorf("%w", errNoOwner)
	if !errors.Is(err, errNoOwner) {
		t.Error("not wrapped")
	}
}
