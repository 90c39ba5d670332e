package follow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/revocation"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// restore starts the newest state on disk that is good. A bad file is set aside
// and the next older one tried.
func (f *Follower) restore(ctx context.Context) {
	s, log := f.cfg.Store, f.cfg.Logger
	f.door.floor = s.catalog.Floor
	if ders := append(s.catalog.Keys, f.cfg.SigningKeys...); len(ders) > 0 {
		if keys, err := identity.ParseVerifyKeys(ders); err == nil {
			f.door.keys = keys
		} else {
			log.Error("signing keys on disk cannot be read", "err", err)
		}
	}
	versions, err := s.candidates()
	if err != nil {
		log.Error("last-known-good states cannot be listed", "err", err)
		return
	}
	for _, v := range versions {
		began := time.Now()
		err := f.restoreOne(ctx, v)
		if err == nil {
			log.Info("started from last-known-good state", "version", v, "took", time.Since(began))
			return
		}
		log.Error("last-known-good state refused", "version", v, "err", err)
		if errors.Is(err, ErrTampered) {
			s.setAside(fileName(v))
		}
	}
}

func (f *Follower) restoreOne(ctx context.Context, v config.Version) error {
	st, err := f.cfg.Store.load(v, f.cfg.MaxUpdate)
	if err != nil {
		return err
	}
	// The floor keeps newer control planes' states out that are older than what
	// ran; of what is on disk an older one is better than none.
	d := f.door
	d.floor = config.Version{}
	in, err := d.check(&st.state)
	// A signature that cannot be checked is no sign of damage: the seal held, and
	// the key may only be unknown as long as no control plane has said it.
	if errors.Is(err, ErrDigest) {
		return fmt.Errorf("%w: %w", ErrTampered, err)
	}
	if err != nil {
		return err
	}
	// The deny lane comes first: the state is live as soon as it is applied.
	entries := make([]revocation.Entry, 0, len(st.revocations))
	for _, r := range st.revocations {
		e, err := revocation.EntryOf(r)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTampered, err)
		}
		entries = append(entries, e)
	}
	f.cfg.Revocations.Add(entries...)
	if err := d.start(ctx, in); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cfg.Freshness.Holds(v.Epoch, max(st.complete, v.Revision), time.Now())
	return f.door.commit(in)
}

// save keeps the copy on disk close to what runs, until ctx ends; then it saves
// what is left.
func (f *Follower) save(ctx context.Context) {
	var saved config.Version
	f.mu.Lock()
	saved = f.door.held.version
	f.mu.Unlock()
	for ctx.Err() == nil {
		select {
		case <-f.dirty:
		case <-ctx.Done():
		}
		began := time.Now()
		v, err := f.saveOnce(saved)
		if err != nil {
			// A full disk must not stop the node; the next change tries again.
			f.cfg.Logger.Error("last-known-good state could not be saved", "err", err)
		} else if v == saved {
			continue // a Welcome, say: what comes next need not wait for it
		}
		saved = v
		pause := time.NewTimer(max(f.cfg.SaveEvery, 20*time.Since(began)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
	if _, err := f.saveOnce(saved); err != nil {
		f.cfg.Logger.Error("last-known-good state could not be saved", "err", err)
	}
}

// copyTries is how often updates may come in between before they have to wait
// until the credentials have been copied.
const copyTries = 3

// copy returns what the node holds, its credentials in memory, so that nothing
// that comes in waits for the disk. It returns no credentials when the version is
// that which was saved.
func (f *Follower) copy(saved config.Version) (held holding, keys [][]byte, credentials []*controlv1.CredentialRecords) {
	look := func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		held, keys = f.door.held, f.welcome.GetSigningKeys()
	}
	for try := 1; ; try++ {
		if try == copyTries {
			f.committing.Lock()
			defer f.committing.Unlock()
		}
		look()
		before := held.version
		if before.IsZero() || before == saved {
			return held, keys, nil
		}
		credentials = slices.Collect(f.cfg.Credentials.Chunks(chunkBytes))
		// Credentials and version change in one step, and no version comes twice.
		if look(); held.version == before {
			return held, keys, credentials
		}
	}
}

// Hold has the follower make way for another process that is the same node, until
// it is called with false: it does not write to its Store, and seldom takes the
// stream back from the other. When it returns no write is under way.
func (f *Follower) Hold(on bool) {
	f.saving.Lock()
	f.held.Store(on)
	f.saving.Unlock()
	if !on && f.cfg.Store != nil {
		f.wakeSave()
	}
}

// saveOnce writes what the node holds, unless that is what was saved, and
// returns what is saved now.
func (f *Follower) saveOnce(saved config.Version) (config.Version, error) {
	f.saving.Lock()
	defer f.saving.Unlock()
	if f.held.Load() {
		return saved, nil
	}
	held, keys, credentials := f.copy(saved)
	if held.version.IsZero() || held.version == saved {
		return saved, nil
	}
	keys = mergeKeys(keys, f.cfg.Store.catalog.Keys)
	complete := held.version.Revision
	if epoch, revision := f.cfg.Freshness.Held(); epoch == held.version.Epoch {
		complete = max(complete, revision)
	}
	err := f.cfg.Store.save(held.version, held.digest, keys, func(w *stateWriter) error {
		var meanwhile pause
		for i, r := range credentials {
			credentials[i] = nil // a million are 64 MB
			w.credentials(r)
			meanwhile.next(1)
		}
		for e := range f.cfg.Revocations.All() {
			w.revocation(e.Proto())
			meanwhile.next(64)
		}
		for r := range held.checked.All() {
			w.resource(r)
			meanwhile.next(16)
		}
		w.finish(held.digest, held.signature, complete)
		return nil
	})
	if err != nil {
		return saved, err
	}
	return held.version, nil
}

// pause lets requests run in between: a goroutine that is not preempted keeps a
// processor for 10 ms, and a node may have but one.
type pause int

func (p *pause) next(every int) {
	if *p++; int(*p) >= every {
		*p = 0
		runtime.Gosched()
	}
}

// mergeKeys adds the keys that signed what is still on disk to the current ones.
func mergeKeys(now, before [][]byte) [][]byte {
	const most = 8
	all := slices.Clone(now)
	for _, k := range before {
		if len(all) < most && !slices.ContainsFunc(all, func(o []byte) bool { return bytes.Equal(o, k) }) {
			all = append(all, k)
		}
	}
	return all
}
