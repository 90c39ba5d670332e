package controlplane

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"portcullis.dev/portcullis/controlplane/store"
)

const (
	// ticketEvery is how often a new key seals session tickets, and ticketKeep how
	// many keys open them: a client resumes for a day at least, and what was recorded
	// cannot be opened with what is found in a node's memory 36 hours later.
	ticketEvery = 12 * time.Hour
	ticketKeep  = 3
	// ticketRetry is the time after a store that could not be asked.
	ticketRetry = time.Minute

	ticketItem = "keys"
)

// ticketKey is a key of TLS session tickets.
type ticketKey struct {
	Key  []byte    `json:"key"`
	Made time.Time `json:"made"`
}

// tickets are the keys of TLS session tickets that all nodes of the cluster share,
// so that a client resumes with any of them. They live in the store, where whichever
// replica is first rotates them.
type tickets struct {
	items store.ItemStore
	log   *slog.Logger
	// told hears of each new set of keys; called from Run only.
	told func() error
	// changed is ready when the room has changed.
	changed chan struct{}

	mu   sync.Mutex
	held []ticketKey // newest first
}

// openTickets reads the keys, or makes the first.
func openTickets(ctx context.Context, items store.ItemStore, log *slog.Logger) (*tickets, error) {
	t := &tickets{items: items, log: log, changed: make(chan struct{}, 1)}
	_, err := t.refresh(ctx, time.Now())
	return t, err
}

// keys returns the keys, newest first.
func (t *tickets) keys() [][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := make([][]byte, len(t.held))
	for i, k := range t.held {
		keys[i] = k.Key
	}
	return keys
}

// refresh reads the keys and adds one when the newest is old. It returns when to
// do so again.
func (t *tickets) refresh(ctx context.Context, now time.Time) (time.Time, error) {
	for {
		var held []ticketKey
		item, err := t.items.Get(ctx, ticketItem)
		switch {
		case err == nil:
			if err := json.Unmarshal(item.Value, &held); err != nil {
				return now, fmt.Errorf("reading the keys of session tickets: %w", err)
			}
		case !errors.Is(err, store.ErrNotFound):
			return now, fmt.Errorf("reading the keys of session tickets: %w", err)
		}
		// A key from the future is another replica's, whose clock is ahead.
		if len(held) > 0 && now.Sub(held[0].Made) < ticketEvery {
			t.mu.Lock()
			t.held = held
			t.mu.Unlock()
			return held[0].Made.Add(ticketEvery), nil
		}
		key := make([]byte, 32)
		_, _ = rand.Read(key)
		held = append([]ticketKey{{Key: key, Made: now}}, held[:min(len(held), ticketKeep-1)]...)
		value, err := json.Marshal(held)
		if err != nil {
			return now, err
		}
		_, err = t.items.Put(ctx, ticketItem, value, store.Write{At: item.Revision})
		// Another replica was first: its key is the one.
		if err != nil && !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrConflict) {
			return now, fmt.Errorf("storing the keys of session tickets: %w", err)
		}
	}
}

// Run rotates the keys, and tells of those that another replica has rotated, until
// ctx ends.
func (t *tickets) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var told string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-t.changed:
		}
		next, err := t.refresh(ctx, time.Now())
		if now := fmt.Sprintf("%x", t.keys()); err == nil && now != told {
			if err = t.told(); err == nil {
				told = now
			}
		}
		if err != nil {
			if ctx.Err() == nil {
				t.log.Warn("the keys of session tickets could not be rotated; trying again", "error", err)
			}
			next = time.Now().Add(ticketRetry)
		}
		timer.Reset(time.Until(next))
	}
}
