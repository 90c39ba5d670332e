package store

import (
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
// secret is sealed whole, for its key: it cannot be moved to another name.
type codec struct{ sealer Sealer }

func aadOf(k config.Key) []byte {
	return []byte("resource\x00" + k.Kind + "\x00" + k.Workspace + "\x00" + k.Name)
}

// encode returns nil for a nil resource. The bytes of equal resources differ
// when they are sealed.
func (c codec) encode(k config.Key, r *configv1.Resource) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	if !holdsSecret(r.ProtoReflect()) {
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

// holdsSecret reports whether any populated field is annotated as secret.
func holdsSecret(m protoreflect.Message) bool {
	found := false
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		found = isSecret(fd) || nestedSecret(fd, v)
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

func nestedSecret(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() == nil {
			return false
		}
		found := false
		v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
			found = holdsSecret(v.Message())
			return !found
		})
		return found
	case fd.Message() == nil:
		return false
	case fd.IsList():
		for i := range v.List().Len() {
			if holdsSecret(v.List().Get(i).Message()) {
				return true
			}
		}
		return false
	default:
		return holdsSecret(v.Message())
	}
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
