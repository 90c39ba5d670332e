package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/controlplane/admin"
	"portcullis.dev/portcullis/controlplane/keys"
	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Rooms of the store for the control plane's own state. All items are sealed.
const (
	roomSecrets    = "secrets"
	roomIssuerKeys = "issuer-keys"
	roomJoinTokens = "join-tokens"
	roomNodes      = "nodes"
	roomReplicas   = "replicas"
	roomLocks      = "locks"
	roomBoots      = "boots"
	roomACME       = "acme-accounts"
	roomTickets    = "ticket-keys"
)

// authority is what the cluster's replicas share: made once, by whichever
// replica is first, and read by all.
type authority struct {
	ca      *identity.CA
	signing identity.SigningKey
	busKey  *controlv1.BusKey
}

// openAuthority reads the cluster's secrets, or makes them.
func openAuthority(ctx context.Context, st store.Store) (*authority, error) {
	a := &authority{}
	items := st.Items(roomSecrets)
	der, err := once(ctx, items, "ca", func() ([]byte, error) {
		ca, err := identity.NewCA(time.Now())
		if err != nil {
			return nil, err
		}
		return ca.Marshal()
	})
	if err != nil {
		return nil, err
	}
	if a.ca, err = identity.ParseCA(der); err != nil {
		return nil, err
	}
	der, err = once(ctx, items, "version-signing", func() ([]byte, error) {
		key, err := identity.NewSigningKey()
		if err != nil {
			return nil, err
		}
		return key.Marshal()
	})
	if err != nil {
		return nil, err
	}
	if a.signing, err = identity.ParseSigningKey(der); err != nil {
		return nil, err
	}
	stored, err := once(ctx, items, "bus", func() ([]byte, error) {
		key := make([]byte, 32)
		_, _ = rand.Read(key)
		return proto.Marshal(&controlv1.BusKey{Id: 1, Key: key})
	})
	if err != nil {
		return nil, err
	}
	a.busKey = &controlv1.BusKey{}
	return a, proto.Unmarshal(stored, a.busKey)
}

// once returns the item, which make makes when it is not there. Of several
// replicas that start at once, one makes it and all get it.
func once(ctx context.Context, items store.ItemStore, name string, make func() ([]byte, error)) ([]byte, error) {
	for {
		item, err := items.Get(ctx, name)
		if err == nil {
			return item.Value, nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		value, err := make()
		if err != nil {
			return nil, fmt.Errorf("making %s: %w", name, err)
		}
		if _, err := items.Put(ctx, name, value, store.Write{}); err != nil && !errors.Is(err, store.ErrExists) {
			return nil, fmt.Errorf("storing %s: %w", name, err)
		}
	}
}

// vault keeps the private keys of built-in issuers in the store.
type vault struct{ items store.ItemStore }

func (v vault) Load(ctx context.Context, name string) ([]byte, error) {
	item, err := v.items.Get(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return item.Value, err
}

func (v vault) Create(ctx context.Context, name string, key []byte) (bool, error) {
	_, err := v.items.Put(ctx, name, key, store.Write{})
	if errors.Is(err, store.ErrExists) {
		return false, nil
	}
	return err == nil, err
}

// initialise writes what a cluster has from the start: the workspace default and
// the built-in issuer local. It happens once in the life of a store, so that an
// operator may delete them.
func initialise(ctx context.Context, st store.Store, issuers *keys.Issuers) error {
	_, err := once(ctx, st.Items(roomSecrets), "initialised", func() ([]byte, error) {
		state, err := st.Load(ctx)
		if err != nil {
			return nil, err
		}
		if len(state.Resources) > 0 {
			return []byte("adopted"), nil
		}
		// The name is unique to the cluster, so that a token of one never passes for
		// another's.
		change := &adminv1.Change{Upserts: config.Initial("https://portcullis.invalid/" + rand.Text()[:16])}
		full, err := issuers.Complete(ctx, change, config.Checked{}, false)
		if err != nil {
			return nil, err
		}
		_, err = st.Apply(ctx, state.Version, full, store.Meta{Author: "system", Reason: "first start", Time: time.Now()})
		if errors.Is(err, store.ErrConflict) {
			err = nil // another replica was first
		}
		return []byte("done"), err
	})
	return err
}

// firstOperator makes the cluster's first admin and returns its credential; ""
// when there is an operator already.
func firstOperator(ctx context.Context, st store.Store) (string, error) {
	const claim = "first-operator"
	for {
		able, err := admin.AnyOperator(ctx, st)
		if err != nil || able {
			return "", err
		}
		// One replica at a time, since what another has half made looks like what a
		// crash has left. The claim of one that crashes goes by itself.
		_, err = st.Items(roomLocks).Put(ctx, claim, nil, store.Write{TTL: claimTTL})
		if errors.Is(err, store.ErrExists) {
			pause(ctx, 20*time.Millisecond)
			continue
		}
		if err != nil {
			return "", err
		}
		credential, err := makeFirstOperator(ctx, st)
		_, released := st.Items(roomLocks).Delete(ctx, claim)
		if released != nil && !errors.Is(released, store.ErrNotFound) {
			err = errors.Join(err, released)
		}
		return credential, err
	}
}

// claimTTL is how long the claim of a replica that has crashed still stands.
const claimTTL = 5 * time.Second

func makeFirstOperator(ctx context.Context, st store.Store) (string, error) {
	if able, err := admin.AnyOperator(ctx, st); err != nil || able {
		return "", err
	}
	if err := admin.RemoveUnable(ctx, st); err != nil {
		return "", err
	}
	return admin.AddOperator(ctx, st, &adminv1.Operator{Name: "admin", Role: adminv1.Role_ROLE_ADMIN})
}

// nextBoot numbers this start of a replica above every earlier one, by the store's
// revisions and not by a clock that may be set back: members of the bus drop what
// an earlier boot says.
func nextBoot(ctx context.Context, st store.Store, name string) (uint64, error) {
	revision, err := st.Items(roomBoots).Put(ctx, name, nil, store.Write{At: store.Overwrite})
	if err != nil {
		return 0, fmt.Errorf("numbering this start: %w", err)
	}
	tip, err := st.Tip(ctx)
	if err != nil {
		return 0, fmt.Errorf("numbering this start: %w", err)
	}
	return tip.Epoch<<48 | uint64(revision), nil
}
