// Package store keeps the truth: resources, credentials, revocations, their
// history, and the control plane's own small state. Etcd is the only place that
// speaks to etcd; Memory is its twin and passes the same conformance suite.
//
// The package owns atomicity, order, sealing and recovery. It must not know what
// a resource means: whether a change is right is pkg/config's to say before, and
// who may make it is controlplane/admin's.
package store

import (
	"context"
	"errors"
	"iter"
	"time"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// What a store refuses, and why. Compare with errors.Is.
var (
	// ErrConflict: what the write was planned on is not what is stored any more.
	// Nothing was written; load and plan again.
	ErrConflict = errors.New("conflict: the state has moved on")
	// ErrCompacted: the wanted revisions are not kept any more, or belong to
	// another epoch. Load again.
	ErrCompacted = errors.New("store: revision no longer kept")
	// ErrNotFound: there is nothing by that name.
	ErrNotFound = errors.New("not found")
	// ErrExists: there is something by that name already.
	ErrExists = errors.New("exists already")
	// ErrTooLarge: one resource is too large to be stored.
	ErrTooLarge = errors.New("store: too large")
	// ErrInvalid: a key or argument that no caller should pass.
	ErrInvalid = errors.New("store: invalid")
	// ErrFull: etcd has used up its space quota (NOSPACE). Reads go on; writes are
	// refused until space was made and the alarm disarmed.
	ErrFull = errors.New("store: etcd is full (alarm NOSPACE): reads go on, writes are refused until it is compacted, defragmented and the alarm disarmed, or its quota raised")
	// ErrUnknown: a write's outcome could not be found out. It may have happened.
	ErrUnknown = errors.New("store: outcome unknown")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store: closed")
)

// Meta says who changes something and why. It is kept in the history.
type Meta struct {
	Author string
	Reason string
	// Time of the change; now when zero.
	Time time.Time
}

// Store holds the truth. All methods may be called concurrently. All revisions
// are of one sequence: a higher revision was committed later. Messages that a
// Store returns belong to the caller; messages passed to it are not kept.
type Store interface {
	// Load returns everything as of one version.
	Load(ctx context.Context) (*State, error)

	// Apply commits a change as one revision: all of it or nothing. It fails with
	// ErrConflict when the config lane has moved past at. Upserts that change
	// nothing and deletes of what is not there are left out; when nothing is left
	// the version is the current one and nothing is written.
	Apply(ctx context.Context, at config.Version, change *adminv1.Change, meta Meta) (config.Version, error)

	// CreateCredential creates a credential: of several callers with one name one
	// does, and the others get ErrExists. Its Application must exist (ErrNotFound).
	CreateCredential(ctx context.Context, r *configv1.Resource, meta Meta) (config.Version, error)
	// PutCredential creates or replaces a credential. Its Application must exist
	// (ErrNotFound). It conflicts with no other write.
	PutCredential(ctx context.Context, r *configv1.Resource, meta Meta) (config.Version, error)
	// DeleteCredential deletes a credential and returns what it was.
	DeleteCredential(ctx context.Context, workspace, name string, meta Meta) (config.Version, *configv1.Resource, error)
	GetCredential(ctx context.Context, workspace, name string) (*configv1.Resource, error)
	// ListCredentials returns a workspace's credentials in order of name.
	ListCredentials(ctx context.Context, workspace string, page Page) (CredentialPage, error)

	// Revoke puts entries on the deny lane. An entry that is there already is only
	// ever made stronger: the later bound and the later expiry hold. Revision of
	// the entries passed is ignored.
	Revoke(ctx context.Context, entries []*controlv1.Revocation, meta Meta) (config.Version, error)

	// Watch yields what was committed after a version, in order, without gaps, and
	// proofs of being current (see Event). It ends with an error: ErrCompacted when
	// the caller must load again, the context's error when that has ended.
	Watch(ctx context.Context, after config.Version) iter.Seq2[Event, error]

	// History returns commits, newest first. Only those before the revision, when
	// it is not 0; only those that touch the workspace, when it is not empty. Limit
	// 0 means 50.
	History(ctx context.Context, before int64, limit int, workspace string) ([]*HistoryRecord, error)

	// Tip returns the version of the newest commit on any lane.
	Tip(ctx context.Context) (config.Version, error)

	// At returns the config lane's resources as of a revision, which lies between
	// the oldest kept (ErrCompacted) and the newest (ErrNotFound).
	At(ctx context.Context, revision int64) ([]*configv1.Resource, error)

	// Items is a room of the control plane's own small state. A room's name is
	// lower-case letters and '-'.
	Items(room string) ItemStore

	Close() error
}

// State is everything as of Version.
type State struct {
	// Version of the newest commit on any lane.
	Version config.Version
	// The config lane, in order of kind, workspace, name.
	Resources   []*configv1.Resource
	Revocations []*controlv1.Revocation
	// RevocationsRevision is that of the newest commit on the deny lane.
	RevocationsRevision int64
	// Credentials streams the credentials as of Version, in constant memory. It
	// may be ranged over once, soon: it ends with ErrCompacted when the revision
	// was compacted meanwhile.
	Credentials iter.Seq2[*configv1.Resource, error]
}

// Event is what a watch yields. One with a Version is a commit; one without is a
// proof or a hint.
type Event struct {
	// Version of the commit; Previous is that of the commit before it.
	Version, Previous config.Version
	// Record says who made the commit and why; it has no Edits.
	Record *HistoryRecord
	// The config lane's changes.
	Upserts []*configv1.Resource
	Deletes []config.Key
	// Credentials that ended, as they were: deleted ones, and replaced ones whose
	// key differs. To be applied before CredentialPuts.
	CredentialDeletes []*configv1.Resource
	CredentialPuts    []*configv1.Resource
	// Deny-lane entries, each with its Revision.
	Revocations []*controlv1.Revocation
	// Rooms whose items have changed.
	Rooms []string
	// Progress, when not 0, proves that all commits up to this revision have been
	// yielded and that none was newer at AsOf. The proof is a quorum's, so it does
	// not come from a member that was cut off. AsOf has a monotonic reading.
	Progress int64
	AsOf     time.Time
}

// HistoryRecord is one commit, with every resource before and after. Secrets are
// in clear.
type HistoryRecord struct {
	Version     config.Version
	Time        time.Time
	Author      string
	Reason      string
	Edits       []Edit
	Revocations []*controlv1.Revocation
}

// Edit is one resource before and after a commit. A nil Before means created, a
// nil After deleted.
type Edit struct {
	Key    config.Key
	Before *configv1.Resource
	After  *configv1.Resource
}

// Page asks for at most Limit (default 1000) entries after a name.
type Page struct {
	After string
	Limit int
}

// CredentialPage is a page of credentials. Next is the next page's After, empty
// on the last.
type CredentialPage struct {
	Credentials []*configv1.Resource
	Version     config.Version
	Next        string
}

// Item is a sealed value of the control plane's own.
type Item struct {
	Name  string
	Value []byte
	// Revision at which it was written.
	Revision int64
}

// Overwrite as a Write's At writes whatever is there.
const Overwrite int64 = -1

// Write says under which condition an item is written and how long it stays.
type Write struct {
	// At is the revision that the item must have: 0 creates it (ErrExists when it
	// is there), Overwrite does not care. Otherwise ErrConflict when it differs.
	At int64
	// TTL after which the item is gone; 0 keeps it. Rounded up to seconds.
	TTL time.Duration
}

// ItemStore is a room. All methods may be called concurrently. Where more than
// one caller writes or deletes an item at once, exactly one wins.
type ItemStore interface {
	// Get fails with ErrNotFound.
	Get(ctx context.Context, name string) (Item, error)
	// Put returns the item's new revision.
	Put(ctx context.Context, name string, value []byte, w Write) (int64, error)
	// List returns all items in order of name.
	List(ctx context.Context) ([]Item, error)
	// Delete returns what was deleted, and fails with ErrNotFound when nothing
	// was: of many callers one gets the item, which makes one-time use atomic.
	Delete(ctx context.Context, name string) (Item, error)
	// Hold keeps an item for as long as it runs: it writes it, keeps its lease
	// alive, writes it again should it be lost, and deletes it when ctx ends. A
	// crashed holder's item goes after ttl. It returns when ctx ends or when the
	// item cannot be kept.
	Hold(ctx context.Context, name string, value []byte, ttl time.Duration) error
}

// Sealer encrypts what is stored. pkg/secret has one. Both methods may be called
// concurrently. What was sealed for one aad does not open for another.
type Sealer interface {
	Seal(plain, aad []byte) ([]byte, error)
	Open(sealed, aad []byte) ([]byte, error)
}
