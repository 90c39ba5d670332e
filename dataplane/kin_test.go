package dataplane

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/limit"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
)

// start is one process of a node, without the rest of it.
func start(t *testing.T, boot uint64) (*kin, context.CancelFunc) {
	t.Helper()
	k := &kin{node: "n", boot: boot, log: slog.New(slog.DiscardHandler), links: map[*kinLink]struct{}{}}
	k.limiter = limit.New(limit.Config{Node: "n", Boot: boot, Publish: func(m *busv1.Spent) error {
		k.publish(m)
		return nil
	}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = k.limiter.Run(ctx)
		_ = k.run(ctx)
	}()
	end := func() {
		cancel()
		<-done
	}
	t.Cleanup(end)
	return k, end
}

// What one process of a node spends the next one cannot spend again, nor the other
// way round, and one of them at a time answers for the node.
func TestBucketsAreHandedOver(t *testing.T) {
	before, end := start(t, 1)
	before.charged.Store(true)
	key, rate := limit.KeyOf("k"), limit.Rate{PerSecond: 0.001, Burst: 100}
	left := func(k *kin) int { return int(k.limiter.Spend(key, rate, 0, time.Now()).Remaining + 0.5) }
	before.limiter.Spend(key, rate, 80, time.Now())
	offered, err := before.offer()
	if err != nil {
		t.Fatal(err)
	}
	_ = offered.Close() // a successor that did not come up
	if offered, err = before.offer(); err != nil {
		t.Fatal(err)
	}
	after, _ := start(t, 2)
	if err := after.take(offered); err != nil {
		t.Fatal(err)
	}
	if got := left(after); got != 20 {
		t.Fatalf("%d left at once, want 20", got)
	}
	before.limiter.Spend(key, rate, 5, time.Now())
	after.limiter.Spend(key, rate, 7, time.Now())
	await(t, "what both spent", func() bool { return left(before) == 8 && left(after) == 8 })
	if !before.charged.Load() || after.charged.Load() {
		t.Error("the successor answers before it is told to")
	}
	before.yield()
	await(t, "the successor answers", after.charged.Load)
	if before.charged.Load() {
		t.Error("both answer")
	}
	before.limiter.Spend(key, rate, 3, time.Now())
	end()
	await(t, "what was spent last", func() bool { return left(after) == 5 })
	if _, err := before.offer(); err == nil {
		t.Error("a process that has ended hands over")
	}
}

// While three processes overlap, the newest that has taken over answers alone,
// whoever ends first.
func TestOneOfManyAnswers(t *testing.T) {
	first, endFirst := start(t, 1)
	first.charged.Store(true)
	succeed := func(before *kin, boot uint64) (*kin, func()) {
		t.Helper()
		offered, err := before.offer()
		if err != nil {
			t.Fatal(err)
		}
		after, end := start(t, boot)
		if err := after.take(offered); err != nil {
			t.Fatal(err)
		}
		// However much waits to be told.
		for range 2 * kinQueue {
			before.publish(&busv1.Spent{Now: 1})
		}
		before.yield()
		await(t, "the successor answers", after.charged.Load)
		return after, end
	}
	second, endSecond := succeed(first, 2)
	third, _ := succeed(second, 3)
	key, rate := limit.KeyOf("k"), limit.Rate{PerSecond: 0.001, Burst: 100}
	second.limiter.Spend(key, rate, 80, time.Now())
	// It was told so after the second had yielded.
	await(t, "the first hears of what the second spends", func() bool {
		return first.limiter.Spend(key, rate, 0, time.Now()).Remaining < 21
	})
	if first.charged.Load() {
		t.Error("the first answers again when the second yields")
	}
	endFirst()
	await(t, "the second hears of the end of the first", func() bool {
		second.mu.Lock()
		defer second.mu.Unlock()
		return len(second.links) == 1
	})
	endSecond()
	if second.charged.Load() || !third.charged.Load() {
		t.Error("the second answers again when the first ends")
	}
}
