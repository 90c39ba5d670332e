package controlplane

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/controlplane/stream"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// How long the mirror waits before it loads again after the store could not be
// read or held what it must not; doubled each time.
const (
	reloadPause    = time.Second
	maxReloadPause = 30 * time.Second
)

// fullChunk is the size of the chunks in which credentials are copied for a full
// state.
const fullChunk = 1 << 20

// mirror is this replica's view of the store: it loads, follows the watch, and
// tells the hub of each version. It implements admin.Mirror. One goroutine, Run,
// writes; readers take the lock for a moment.
type mirror struct {
	store store.Store
	hub   *stream.Hub
	log   *slog.Logger
	// committed and proved tell others what the watch yielded, in order; called from
	// Run only.
	committed func(store.Event, int64)
	proved    func(store.Event, stream.Head)
	// loaded tells others that the whole store was taken over anew; may be nil.
	// Called from Run only.
	loaded func()

	// state guards what a full state is read from: Run writes, Full reads.
	state       sync.RWMutex
	checked     config.Checked
	head        stream.Head
	credentials *credential.Set
	revocations *revocation.Set
	// moved is closed and replaced whenever head changes.
	moved chan struct{}
}

func newMirror(st store.Store, log *slog.Logger) *mirror {
	return &mirror{store: st, log: log, credentials: credential.NewSet(), revocations: revocation.NewSet(), moved: make(chan struct{})}
}

// Current implements admin.Mirror.
func (m *mirror) Current() (config.Checked, config.Version) {
	m.state.RLock()
	defer m.state.RUnlock()
	return m.checked, m.head.Version
}

// Counts implements admin.Mirror.
func (m *mirror) Counts() (credentials, revocations int) {
	m.state.RLock()
	defer m.state.RUnlock()
	return m.credentials.Len(), m.revocations.Len()
}

// Await implements admin.Mirror.
func (m *mirror) Await(ctx context.Context, version config.Version) error {
	for {
		m.state.RLock()
		at, moved := m.head.Version, m.moved
		m.state.RUnlock()
		if at.Compare(version) >= 0 {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("this control plane has not seen revision %s yet: %w", version, ctx.Err())
		}
	}
}

// Full implements stream.Config.Full. Credentials are copied while the mirror
// stands still, which takes a tenth of a second for a million; to encode them
// under the lock would hold up revocations. Those may be newer than the head:
// more of them only denies more.
func (m *mirror) Full(context.Context) (stream.State, error) {
	m.state.RLock()
	defer m.state.RUnlock()
	if m.head.Version.IsZero() {
		return stream.State{}, errors.New("the store is not loaded yet")
	}
	chunks := slices.Collect(m.credentials.Chunks(fullChunk))
	return stream.State{
		Head: m.head, Resources: m.checked.All(), Revocations: protos(m.revocations),
		Credentials: func(int) iter.Seq[*controlv1.CredentialRecords] { return slices.Values(chunks) },
	}, nil
}

func protos(set *revocation.Set) iter.Seq[*controlv1.Revocation] {
	return func(yield func(*controlv1.Revocation) bool) {
		for entry := range set.All() {
			if !yield(entry.Proto()) {
				return
			}
		}
	}
}

// Run follows the store until ctx ends. A store that cannot be read leaves the
// last state in place.
func (m *mirror) Run(ctx context.Context) error {
	wait := reloadPause
	for ctx.Err() == nil {
		_, before := m.Current()
		err := m.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		if _, after := m.Current(); after != before {
			wait = reloadPause
		}
		if err != nil {
			m.log.Error("following the store failed; loading it again", "error", err, "in", wait)
			pause(ctx, wait)
			wait = min(2*wait, maxReloadPause)
		}
	}
	return nil
}

func (m *mirror) follow(ctx context.Context) error {
	if err := m.load(ctx); err != nil {
		return err
	}
	if m.loaded != nil {
		m.loaded()
	}
	_, version := m.Current()
	for event, err := range m.store.Watch(ctx, version) {
		if errors.Is(err, store.ErrCompacted) {
			m.log.Warn("the watch fell behind a compaction: loading the store again")
			return nil
		}
		if err != nil {
			return err
		}
		if !event.Version.IsZero() {
			if err := m.apply(event); err != nil {
				return err
			}
		}
		if event.Progress > 0 {
			m.proved(event, m.headNow())
		}
		if len(event.Rooms) > 0 && event.Version.IsZero() {
			m.committed(event, 0)
		}
	}
	return ctx.Err()
}

func (m *mirror) headNow() stream.Head {
	m.state.RLock()
	defer m.state.RUnlock()
	return m.head
}

// load takes the whole store over. The deny lane only grows: an epoch's change
// keeps what was revoked before.
func (m *mirror) load(ctx context.Context) error {
	loaded, err := m.store.Load(ctx)
	if err != nil {
		return fmt.Errorf("loading the store: %w", err)
	}
	// The deny lane counts whatever becomes of the configuration.
	m.revocations.Add(m.entries(loaded.Revocations)...)
	checked, err := config.Check(loaded.Resources)
	if err != nil {
		return fmt.Errorf("what the store holds is not valid, so it is not served: %w", err)
	}
	credentials := credential.NewSet()
	for resource, err := range loaded.Credentials {
		if err != nil {
			return fmt.Errorf("loading credentials: %w", err)
		}
		one, err := credential.Of(resource)
		if err != nil {
			m.log.Error("a stored credential cannot be used", "credential", config.KeyOf(resource).String(), "error", err)
			continue
		}
		credentials.Put(one)
	}
	m.state.Lock()
	defer m.state.Unlock()
	m.checked = checked
	m.credentials = credentials
	m.advance(stream.Head{Version: loaded.Version, Revocations: loaded.RevocationsRevision})
	if err := m.hub.Reset(m.head); err != nil {
		return err
	}
	return nil
}

// advance completes the head with the digest and wakes whoever waits; the lock
// is held.
func (m *mirror) advance(head stream.Head) {
	digest, keys := m.checked.Digest(), m.credentials.Digest()
	for i := range digest {
		digest[i] ^= keys[i]
	}
	head.Digest = stream.Digest(digest)
	m.head = head
	close(m.moved)
	m.moved = make(chan struct{})
}

// entries reads revocations; one that cannot be read is reported, never dropped
// in silence.
func (m *mirror) entries(revocations []*controlv1.Revocation) []revocation.Entry {
	entries := make([]revocation.Entry, 0, len(revocations))
	for _, r := range revocations {
		entry, err := revocation.EntryOf(r)
		if err != nil {
			m.log.Error("a stored revocation cannot be used", "revision", r.Revision, "error", err)
			continue
		}
		entries = append(entries, entry)
	}
	return entries
}

// apply takes one commit over and publishes it.
func (m *mirror) apply(event store.Event) error {
	previous := m.headNow()
	// The deny lane counts whatever becomes of the configuration: when this release
	// cannot take that over, the bus still carries what was revoked.
	m.revocations.Add(m.entries(event.Revocations)...)
	defer func() { m.committed(event, previous.Revocations) }()
	change := stream.Change{
		Version: event.Version, Previous: event.Previous, Upserts: event.Upserts, Deletes: event.Deletes,
		Revocations: event.Revocations, RevocationsRevision: previous.Revocations,
	}
	checked := m.checked
	if len(event.Upserts)+len(event.Deletes) > 0 {
		var err error
		if checked, _, err = checked.Apply(config.Delta{Upserts: event.Upserts, Deletes: event.Deletes, Owned: true}); err != nil {
			return fmt.Errorf("revision %s is not valid, so it is not served: %w", event.Version, err)
		}
	}
	var err error
	if change.CredentialDeletes, change.Credentials, err = credentialsOf(event); err != nil {
		return err
	}
	if len(event.Revocations) > 0 {
		change.RevocationsRevision = event.Version.Revision
	}
	m.state.Lock()
	m.checked = checked
	for _, sum := range change.CredentialDeletes {
		m.credentials.Delete(sum)
	}
	for _, one := range change.Credentials {
		m.credentials.Put(one)
	}
	m.advance(stream.Head{Version: event.Version, Revocations: change.RevocationsRevision})
	change.Digest = m.head.Digest
	// Published under the lock: a full state that is read now is never older than
	// the head that the hub knows.
	err = m.hub.Publish(change)
	m.state.Unlock()
	return err
}

func credentialsOf(event store.Event) (deletes [][32]byte, puts []credential.Credential, err error) {
	for _, resource := range event.CredentialDeletes {
		one, err := credential.Of(resource)
		if err != nil {
			return nil, nil, err
		}
		deletes = append(deletes, one.SHA256)
	}
	for _, resource := range event.CredentialPuts {
		one, err := credential.Of(resource)
		if err != nil {
			return nil, nil, err
		}
		puts = append(puts, one)
	}
	return deletes, puts, nil
}
