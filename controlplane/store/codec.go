package store

import (
	"bytes"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Tags before a stored resource: its plain protobuf bytes, or those sealed.
const (
	tagPlain  = 0
	tagSealed = 1
)

// codec turns resources into what is stored and back. A resource that holds a
// secret is sealed whole, for its key: it cannot be moved to another name. Safe
// for concurrent use.
type codec struct {
	sealer Sealer
	// secretive are the messages that have a field marked as secret, or one of a
	// message that is secretive.
	secretive map[protoreflect.FullName]bool
}

func newCodec(sealer Sealer) codec {
	c := codec{sealer, map[protoreflect.FullName]bool{}}
	// To the fixed point, since messages may contain each other.
	for before := -1; before < len(c.secretive); {
		before = len(c.secretive)
		c.learn((*configv1.Resource)(nil).ProtoReflect().Descriptor(), map[protoreflect.FullName]bool{})
	}
	return c
}

func (c codec) learn(m protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) {
	if seen[m.FullName()] {
		return
	}
	seen[m.FullName()] = true
	for i := range m.Fields().Len() {
		fd := m.Fields().Get(i)
		if isSecret(fd) {
			c.secretive[m.FullName()] = true
		}
		if inner := messageOf(fd); inner != nil {
			c.learn(inner, seen)
			if c.secretive[inner.FullName()] {
				c.secretive[m.FullName()] = true
			}
		}
	}
}

// messageOf returns the message that a field's values are, or nil.
func messageOf(fd protoreflect.FieldDescriptor) protoreflect.MessageDescriptor {
	if fd.IsMap() {
		fd = fd.MapValue()
	}
	return fd.Message()
}

func aadOf(k config.Key) []byte {
	return []byte("resource\x00" + k.Kind + "\x00" + k.Workspace + "\x00" + k.Name)
}

// encode returns nil for a nil resource. The bytes of equal resources differ
// when they are sealed.
func (c codec) encode(k config.Key, r *configv1.Resource) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	if !c.holdsSecret(r.ProtoReflect()) {
		b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{tagPlain}, r)
		if err != nil {
			return nil, fmt.Errorf("store: encoding %s: %w", k, err)
		}
		return b, nil
	}
	plain, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("store: encoding %s: %w", k, err)
	}
	sealed, err := c.sealer.Seal(plain, aadOf(k))
	if err != nil {
		return nil, fmt.Errorf("store: sealing %s: %w", k, err)
	}
	return append([]byte{tagSealed}, sealed...), nil
}

// decode returns nil for no bytes.
func (c codec) decode(k config.Key, b []byte) (*configv1.Resource, error) {
	if len(b) == 0 {
		return nil, nil
	}
	tag, b := b[0], b[1:]
	switch tag {
	case tagPlain:
	case tagSealed:
		var err error
		if b, err = c.sealer.Open(b, aadOf(k)); err != nil {
			return nil, fmt.Errorf("store: opening %s: %w", k, err)
		}
	default:
		return nil, fmt.Errorf("store: %s is stored in an unknown form (%d): written by a newer release?", k, tag)
	}
	r := new(configv1.Resource)
	if err := proto.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("store: decoding %s: %w", k, err)
	}
	return r, nil
}

// holdsSecret reports whether any populated field is annotated as secret. It
// descends only where there may be one.
func (c codec) holdsSecret(m protoreflect.Message) bool {
	found := false
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		inner := messageOf(fd)
		found = isSecret(fd) || inner != nil && c.secretive[inner.FullName()] && c.nestedSecret(fd, v)
		return !found
	})
	return found
}

func isSecret(fd protoreflect.FieldDescriptor) bool {
	opts := fd.Options()
	if !proto.HasExtension(opts, configv1.E_Secret) {
		return false
	}
	secret, ok := proto.GetExtension(opts, configv1.E_Secret).(bool)
	return ok && secret
}

// nestedSecret is holdsSecret of a field that is made of messages.
func (c codec) nestedSecret(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
	switch {
	case fd.IsMap():
		found := false
		v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
			found = c.holdsSecret(v.Message())
			return !found
		})
		return found
	case fd.IsList():
		for i := range v.List().Len() {
			if c.holdsSecret(v.List().Get(i).Message()) {
				return true
			}
		}
		return false
	default:
		return c.holdsSecret(v.Message())
	}
}

// same reports whether a resource is what is stored as before, which encode would
// store as after. Equal resources are made of the same bytes, though a release of
// the protobuf library may put them in another order: what differs in the sum of
// its bytes need not be decoded.
func (c codec) same(k config.Key, before, after []byte, r *configv1.Resource) (bool, error) {
	switch {
	case len(before) == 0 || len(after) == 0:
		return len(before) == len(after), nil
	case before[0] == tagPlain && after[0] == tagPlain:
		if bytes.Equal(before, after) {
			return true, nil
		}
		if len(before) != len(after) || sum(before) != sum(after) {
			return false, nil
		}
	}
	old, err := c.decode(k, before)
	return err == nil && proto.Equal(old, r), err
}

func sum(b []byte) (n uint64) {
	for _, c := range b {
		n += uint64(c)
	}
	return n
}

// kindCredential is the one kind that lives on its own lane.
const kindCredential = "Credential"

// checkKey refuses keys that would be ambiguous where they are stored. That they
// are proper names is pkg/config's to check.
func checkKey(k config.Key) error {
	switch {
	case k.Kind == "" || k.Name == "":
		return fmt.Errorf("%w: a resource without kind or name", ErrInvalid)
	case len(k.Workspace) > 255 || len(k.Name) > 255:
		return fmt.Errorf("%w: the name of a %s is longer than 255 bytes", ErrInvalid, k.Kind)
	case strings.ContainsAny(k.Kind+k.Workspace+k.Name, "/\x00"):
		return fmt.Errorf("%w: '/' in the name of %s", ErrInvalid, k)
	}
	return nil
}
