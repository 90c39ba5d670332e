package follow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"google.golang.org/protobuf/reflect/protoreflect"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/identity"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Why an update is refused at the door.
var (
	// ErrOlder: the node has run a newer version.
	ErrOlder = errors.New("older than what this node has run")
	// ErrBase: a delta on top of a version that the node does not run.
	ErrBase = errors.New("delta on another version than this node runs")
	// ErrDigest: the state that the update leads to is not the one announced.
	ErrDigest = errors.New("state differs from the announced digest")
)

// Next is a state that is to be run.
type Next struct {
	Version config.Version
	Checked config.Checked
	// Affected says which routes may differ from those of the state that was
	// applied before; everything, when there is none.
	Affected config.Affected
}

// Applier compiles a state and makes it live. An error leaves the state before
// it live; config.Problems are reported one by one. Apply is called by one
// goroutine at a time, and never again for a version that was refused.
type Applier interface {
	Apply(ctx context.Context, next Next) error
}

// holding is a state that runs.
type holding struct {
	version   config.Version
	checked   config.Checked
	digest    [32]byte
	signature []byte
}

// door decides what comes in. It is not safe for concurrent use.
type door struct {
	applier     Applier
	credentials *credential.Set
	keys        identity.VerifyKeys
	// floor is the newest version that this node has ever run; nothing older comes
	// in again, whoever sends it.
	floor config.Version
	held  holding
}

// admitted is an update that passed every check and is not yet live.
type admitted struct {
	next        Next
	digest      [32]byte
	signature   []byte
	credentials *credential.Set                // the whole set; or
	changes     []*controlv1.CredentialRecords // changes to it
}

// errPanic is what an update made Check or a compiler do. Whatever that is, the
// node goes on serving.
var errPanic = errors.New("panic")

func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: %v\n%s", errPanic, p, debug.Stack())
	}
}

// start has an update that passed made live.
func (d *door) start(ctx context.Context, in admitted) (err error) {
	defer recovered(&err)
	return d.applier.Apply(ctx, in.next)
}

// check does all checks of an update and changes nothing.
func (d *door) check(a *assembly) (in admitted, err error) {
	defer recovered(&err)
	if err := d.authentic(a); err != nil {
		return in, err
	}
	if a.unread != nil {
		return in, a.unread
	}
	for _, r := range a.upserts {
		if r == nil {
			return in, fmt.Errorf("%w: an empty resource", errBroken)
		}
	}
	in = admitted{next: Next{Version: a.version}, digest: a.digest, signature: a.signature}
	if a.full() {
		in.next.Checked, _, err = config.Checked{}.Apply(config.Delta{Upserts: a.upserts, Owned: true})
		in.next.Affected = config.Affected{All: true}
	} else {
		in.next.Checked, in.next.Affected, err = d.held.checked.Apply(config.Delta{Upserts: a.upserts, Deletes: a.deletes, Owned: true})
	}
	if err != nil {
		return in, cmp.Or(understood(a.upserts), err)
	}
	digest, err := d.credentialsAfter(a, &in)
	if err != nil {
		return in, err
	}
	if xor(digest, in.next.Checked.Digest()) != a.digest {
		return in, ErrDigest
	}
	return in, nil
}

// authentic checks where an update comes from and where it leads, before its
// content is looked at.
func (d *door) authentic(a *assembly) error {
	if err := d.keys.VerifyVersion(a.version.Epoch, a.version.Revision, a.digest[:], a.signature); err != nil {
		return err
	}
	if a.version.Compare(d.floor) < 0 || a.version.Compare(d.held.version) < 0 {
		return fmt.Errorf("%v is %w: %v", a.version, ErrOlder, d.floor)
	}
	if !a.full() && (a.from != d.held.version || a.version.Compare(a.from) <= 0 || a.version.Epoch != a.from.Epoch) {
		return fmt.Errorf("%v..%v: %w: %v", a.from, a.version, ErrBase, d.held.version)
	}
	return nil
}

// credentialsAfter checks the update's credentials and returns the digest of all
// credentials once they are applied.
func (d *door) credentialsAfter(a *assembly, in *admitted) ([32]byte, error) {
	if a.full() {
		in.credentials = credential.NewSet()
		for _, r := range a.credentials {
			if err := in.credentials.Apply(r); err != nil {
				return [32]byte{}, err
			}
		}
		return in.credentials.Digest(), nil
	}
	in.changes = a.credentials
	digest := d.credentials.Digest()
	changed := map[[32]byte]*credential.Credential{}
	set := func(sha [32]byte, now *credential.Credential) {
		before, known := changed[sha]
		if !known {
			if c, ok := d.credentials.Lookup(&sha); ok {
				before = &c
			}
		}
		if before != nil {
			digest = xor(digest, before.Digest())
		}
		if now != nil {
			digest = xor(digest, now.Digest())
		}
		changed[sha] = now
	}
	for _, r := range a.credentials {
		upserts, deletes, err := credential.Unpack(r)
		if err != nil {
			return [32]byte{}, err
		}
		for sha := range deletes {
			set(sha, nil)
		}
		for c := range upserts {
			set(c.SHA256, &c)
		}
	}
	return digest, nil
}

// commit makes what was admitted what the node holds. An error, which check has
// ruled out, leaves the credentials differing from the digest: the next
// comparison heals it.
func (d *door) commit(in admitted) error {
	var err error
	if in.credentials != nil {
		d.credentials.Replace(in.credentials)
	}
	for _, r := range in.changes {
		err = errors.Join(err, d.credentials.Apply(r))
	}
	d.held = holding{in.next.Version, in.next.Checked, in.digest, in.signature}
	if d.floor.Compare(in.next.Version) < 0 {
		d.floor = in.next.Version
	}
	return err
}

// digest is that of what the node really holds, not of what it was told.
func (d *door) digest() []byte {
	if d.held.version.IsZero() {
		return nil
	}
	sum := xor(d.credentials.Digest(), d.held.checked.Digest())
	return sum[:]
}

// understood says of resources that were refused which have fields that this binary
// does not know: they may be what makes a route safe. Check refuses every one.
func understood(resources []*configv1.Resource) error {
	var problems config.Problems
	for _, r := range resources {
		if path, ok := unknownField(r.ProtoReflect()); ok {
			problems = append(problems, &config.Problem{
				Key: config.KeyOf(r), Path: path,
				Reason: "a field that this node's release does not know: upgrade the node",
			})
		}
	}
	if problems != nil {
		return problems
	}
	return nil
}

// unknownField returns the path of a message that holds an unknown field.
func unknownField(m protoreflect.Message) (path string, found bool) {
	if len(m.GetUnknown()) > 0 {
		return "", true
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.Message() == nil {
			return true
		}
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() == nil {
				return true
			}
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				path, found = unknownField(v.Message())
				return !found
			})
		case fd.IsList():
			for i := 0; i < v.List().Len() && !found; i++ {
				path, found = unknownField(v.List().Get(i).Message())
			}
		default:
			path, found = unknownField(v.Message())
		}
		if found {
			path = join(fd.JSONName(), path)
		}
		return !found
	})
	return path, found
}

func join(a, b string) string {
	if b == "" {
		return a
	}
	return a + "." + b
}

func xor(a, b [32]byte) [32]byte {
	for i := range a {
		a[i] ^= b[i]
	}
	return a
}

// problemsOf turns a refusal into what is reported.
func problemsOf(err error) []*controlv1.Problem {
	var problems config.Problems
	if errors.As(err, &problems) && len(problems) > 0 {
		return problems.Proto()
	}
	var one *config.Problem
	if errors.As(err, &one) {
		return []*controlv1.Problem{one.Proto()}
	}
	return []*controlv1.Problem{{Reason: err.Error()}}
}
