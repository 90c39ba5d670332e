package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
)

// A config lane is a register that is swapped on what the writer has seen.
type swap struct{ at int64 }

type swapped struct {
	revision int64 // of the commit; 0: a conflict
}

func laneModel(first int64) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return first },
		Step: func(state, input, output any) (bool, any) {
			head, in, out := state.(int64), input.(swap), output.(swapped)
			if out.revision == 0 {
				return in.at < head, head
			}
			return in.at >= head && out.revision > head, out.revision
		},
		Equal: func(a, b any) bool { return a == b },
		DescribeOperation: func(in, out any) string {
			return fmt.Sprintf("apply at %d: %d", in.(swap).at, out.(swapped).revision)
		},
	}
}

// testRaces lets writers race and asks porcupine whether what they were told can
// have happened one after the other.
func testRaces(t *testing.T, s store.Store) {
	const writers, writes = 5, 12
	ctx := within(t)
	first := apply(t, s, Upserts(Application("w", "app")))
	start := time.Now()
	var mu sync.Mutex
	var ops []porcupine.Operation
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range writes {
				st, err := s.Load(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				at := st.Version
				call := time.Since(start)
				v, err := s.Apply(ctx, at, Upserts(Route("w", "r", fmt.Sprintf("/%d/%d", w, i))), by)
				ret := time.Since(start)
				if err != nil && !errors.Is(err, store.ErrConflict) {
					t.Error(err)
					return
				}
				if err != nil {
					v = config.Version{}
				}
				mu.Lock()
				ops = append(ops, porcupine.Operation{
					ClientId: w, Input: swap{at.Revision}, Call: call.Nanoseconds(),
					Output: swapped{v.Revision}, Return: ret.Nanoseconds(),
				})
				mu.Unlock()
			}
		})
		// Credentials of the same name race with each other and disturb nobody.
		wg.Go(func() {
			for i := range writes {
				if _, err := s.PutCredential(ctx, Credential("w", fmt.Sprintf("k%d", i%3), "app", byte(w), byte(i)), by); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	// The lane's model knows no credentials: a version loaded after one is at least
	// the head, which is all that the model compares.
	if res := porcupine.CheckOperationsTimeout(laneModel(first.Revision), ops, 30*time.Second); res != porcupine.Ok {
		t.Errorf("history of %d writes is not linearizable: %v", len(ops), res)
	}
	// Every replaced key was told to the watchers: what a watch adds up to is what
	// a load returns.
	keys := make(map[string]bool)
	next, stop := follow(t, s, first)
	defer stop()
	tip := load(t, s)
	for at := first; at != tip.Version; {
		e := next()
		for _, r := range e.CredentialDeletes {
			delete(keys, string(r.GetCredential().GetApiKey().GetSha256()))
		}
		for _, r := range e.CredentialPuts {
			keys[string(r.GetCredential().GetApiKey().GetSha256())] = true
		}
		at = e.Version
	}
	stored := credentials(t, tip)
	for _, r := range stored {
		if !keys[string(r.GetCredential().GetApiKey().GetSha256())] {
			t.Errorf("%v was never watched", r)
		}
	}
	if len(keys) != len(stored) {
		t.Errorf("watched %d keys in force, stored are %d", len(keys), len(stored))
	}
}
