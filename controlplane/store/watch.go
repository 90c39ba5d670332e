package store

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"portcullis.dev/portcullis/pkg/config"
)

const (
	// stuckAfter is how long a proven commit may be missing from the watch before
	// the watch is thought broken and opened anew.
	stuckAfter = 5 * time.Second
	// progressEvery is how often etcd is asked for its watch's progress, so that
	// after a lost connection the watch resumes from a revision not compacted.
	progressEvery = 10 * time.Second
)

// proof is a quorum's word on what the newest commit was at a moment.
type proof struct {
	asOf     time.Time
	revision int64
	tip      int64
	cluster  uint64
}

// watcher is one Watch. Its goroutine owns all fields but proofs.
type watcher struct {
	s     *Etcd
	yield func(Event, error) bool
	// last is the newest commit that was yielded.
	last config.Version
	// pending is a proof that waits for a commit to arrive.
	pending *proof
	// proofs has room for one: a proof not taken is replaced by a newer one.
	proofs chan proof
}

// Watch implements Store.
func (s *Etcd) Watch(ctx context.Context, after config.Version) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		stop := context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })
		var proving sync.WaitGroup
		defer proving.Wait()
		defer cancel(nil)
		defer stop()
		w := &watcher{s: s, yield: yield, last: after, proofs: make(chan proof, 1)}
		if err := w.admit(ctx, after); err != nil {
			yield(Event{}, err)
			return
		}
		proving.Go(func() { w.prove(ctx) })
		if err := w.run(ctx); err != nil {
			yield(Event{}, err)
		}
	}
}

// admit refuses a version that is not of this store's sequence.
func (w *watcher) admit(ctx context.Context, after config.Version) error {
	m, err := w.s.readMarks(ctx)
	if err != nil {
		return err
	}
	if tip := w.s.version(m.tip); after.Epoch != tip.Epoch || after.Revision > tip.Revision {
		return fmt.Errorf("%w: asked for what follows %s, the store is at %s", ErrCompacted, after, tip)
	}
	return nil
}

// prove asks for the newest commit at intervals. A read that fails is no proof,
// and whoever waits for one becomes stale, as it should.
func (w *watcher) prove(ctx context.Context) {
	tick := time.NewTicker(w.s.cfg.ProofInterval)
	defer tick.Stop()
	for {
		p := proof{asOf: time.Now()}
		resp, err := w.s.client.Get(ctx, w.s.keys.tip())
		if err == nil && len(resp.Kvs) > 0 {
			p.revision, p.tip, p.cluster = resp.Header.Revision, resp.Kvs[0].ModRevision, resp.Header.ClusterId
			select {
			case <-w.proofs:
			default:
			}
			w.proofs <- p
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// run opens watches until one ends for good. It returns nil when the consumer has
// stopped.
func (w *watcher) run(ctx context.Context) error {
	var b backoff
	for {
		wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		ch := w.s.client.Watch(wctx, w.s.keys.watched(), clientv3.WithPrefix(),
			clientv3.WithRev(w.last.Revision+1), clientv3.WithProgressNotify())
		from := w.last
		done, err := w.follow(wctx, ch)
		cancel()
		// etcd's client may still be handing over a response.
		for range ch {
		}
		if done || err != nil {
			return err
		}
		if w.last != from {
			b = backoff{}
		}
		if b.wait(ctx) != nil {
			return context.Cause(ctx)
		}
	}
}

// follow consumes one watch. Neither done nor an error: it has to be opened anew.
func (w *watcher) follow(ctx context.Context, ch clientv3.WatchChan) (done bool, err error) {
	ask := time.NewTicker(progressEvery)
	defer ask.Stop()
	for {
		// While a proof waits for a commit no other is taken: under constant writes
		// the newest proof would always be one commit ahead.
		proofs := w.proofs
		var stuck <-chan time.Time
		if w.pending != nil {
			proofs = nil
			stuck = time.After(time.Until(w.pending.asOf.Add(stuckAfter)))
		}
		select {
		case <-ctx.Done():
			return true, context.Cause(ctx)
		case p := <-proofs:
			if err := w.s.sameCluster(ctx, p.cluster); err != nil {
				return true, err
			}
			w.pending = &p
		case <-stuck:
			w.s.log.Warn("watch misses a commit, opening it anew", "has", w.last.Revision, "newest", w.pending.tip)
			w.pending = nil
			return false, nil
		case <-ask.C:
			_ = w.s.client.RequestProgress(ctx) // a watch that is gone ends by itself
		case resp, ok := <-ch:
			if !ok {
				return false, nil
			}
			if done, again, err := w.receive(ctx, resp); done || again || err != nil {
				return done, err
			}
		}
		if w.pending != nil && w.last.Revision >= w.pending.tip {
			p := *w.pending
			w.pending = nil
			if !w.yield(Event{Progress: p.revision, AsOf: p.asOf}, nil) {
				return true, nil
			}
		}
	}
}

// receive yields the commits of one response.
func (w *watcher) receive(ctx context.Context, resp clientv3.WatchResponse) (done, again bool, err error) {
	if resp.CompactRevision > 0 {
		return true, false, fmt.Errorf("%w: compacted at %d", ErrCompacted, resp.CompactRevision)
	}
	if err := resp.Err(); err != nil {
		switch {
		case ctx.Err() != nil:
			return true, false, context.Cause(ctx)
		case refused(err): // permissions; trying again would not help
			return true, false, fmt.Errorf("store: watching: %w", explain(err))
		}
		w.s.log.Warn("watch ended, opening it anew", "error", err)
		return false, true, nil
	}
	rooms := make(map[string]bool)
	for _, ev := range resp.Events {
		key := string(ev.Kv.Key)
		if rest, ok := strings.CutPrefix(key, w.s.keys.items()); ok {
			room, _, _ := strings.Cut(rest, "/")
			rooms[room] = true
			continue
		}
		if ev.Type != clientv3.EventTypePut || ev.Kv.ModRevision <= w.last.Revision {
			continue
		}
		h, err := w.s.decodeRecord(ctx, ev.Kv, false)
		if err != nil {
			return true, false, err
		}
		if h == nil {
			continue
		}
		event := eventOf(h, w.last)
		w.last = h.Version
		if !w.yield(event, nil) {
			return true, false, nil
		}
	}
	if len(rooms) > 0 && !w.yield(hint(rooms), nil) {
		return true, false, nil
	}
	return false, false, nil
}

func hint(rooms map[string]bool) Event {
	var e Event
	for room := range rooms {
		e.Rooms = append(e.Rooms, room)
	}
	return e
}
