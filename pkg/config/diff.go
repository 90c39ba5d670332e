package config

import (
	"bytes"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// secretText stands for a secret that is shown.
const secretText = "(secret)"

// isSecret reports whether the field is marked as one in the proto.
func isSecret(fd protoreflect.FieldDescriptor) bool {
	secret, _ := proto.GetExtension(fd.Options(), configv1.E_Secret).(bool)
	return secret
}

// Redact returns a copy without secrets. Applied as it is, the copy is refused
// where a secret is needed; it never replaces a secret by a placeholder.
func Redact(r *configv1.Resource) *configv1.Resource {
	r = proto.Clone(r).(*configv1.Resource)
	redact(r.ProtoReflect())
	return r
}

func redact(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case isSecret(fd):
			m.Clear(fd)
		case fd.IsMap() || fd.Kind() != protoreflect.MessageKind:
		case fd.IsList():
			for i := range v.List().Len() {
				redact(v.List().Get(i).Message())
			}
		default:
			redact(v.Message())
		}
		return true
	})
}

// Diff returns the fields in which two resources differ, in the order of their
// declaration, each as YAML before and after; "" where a field is not set. Either
// may be nil. Secrets are shown as "(secret)", with a difference only where they
// differ.
func Diff(before, after *configv1.Resource) []*adminv1.FieldChange {
	var d differ
	for _, part := range []struct {
		path          string
		before, after protoreflect.Message
	}{
		{"metadata", before.GetMetadata().ProtoReflect(), after.GetMetadata().ProtoReflect()},
		{"spec", specOf(before), specOf(after)},
	} {
		switch b, a := part.before, part.after; {
		case b == nil && a == nil:
		case b == nil || a != nil && b.Descriptor() != a.Descriptor():
			d.message(part.path, a.Type().Zero(), a)
		case a == nil:
			d.message(part.path, b, b.Type().Zero())
		default:
			d.message(part.path, b, a)
		}
	}
	return d.changes
}

func specOf(r *configv1.Resource) protoreflect.Message {
	m := r.ProtoReflect()
	fd := m.WhichOneof(specs())
	if fd == nil {
		return nil
	}
	return m.Get(fd).Message()
}

type differ struct {
	changes       []*adminv1.FieldChange
	before, after []byte // room for equal
}

func (d *differ) add(path, before, after string) {
	d.changes = append(d.changes, &adminv1.FieldChange{Path: path, Before: before, After: after})
}

func (d *differ) message(path string, b, a protoreflect.Message) {
	fields := a.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		inB, inA := b.Has(fd), a.Has(fd)
		if !inB && !inA || inB && inA && d.equal(b.Get(fd), a.Get(fd), fd) {
			continue
		}
		at := path + "." + fd.JSONName()
		switch {
		case fd.IsMap():
			d.maps(at, b.Get(fd).Map(), a.Get(fd).Map(), fd)
		case fd.IsList() && inB && inA:
			d.lists(at, b.Get(fd).List(), a.Get(fd).List(), fd)
		case fd.Kind() == protoreflect.MessageKind && !fd.IsList() && !isScalarMessage(fd.Message()):
			d.nested(at, b, a, fd)
		default:
			d.add(at, show(b, fd), show(a, fd))
		}
	}
}

// equal compares messages by their encodings, which takes a fifth of the time that
// it takes field by field.
func (d *differ) equal(b, a protoreflect.Value, fd protoreflect.FieldDescriptor) bool {
	switch {
	case fd.Kind() != protoreflect.MessageKind || fd.IsMap():
		return b.Equal(a)
	case !fd.IsList():
		return d.equalMessages(b.Message(), a.Message())
	case b.List().Len() != a.List().Len():
		return false
	}
	for i := range b.List().Len() {
		if !d.equalMessages(b.List().Get(i).Message(), a.List().Get(i).Message()) {
			return false
		}
	}
	return true
}

func (d *differ) equalMessages(b, a protoreflect.Message) bool {
	var errB, errA error
	encode := proto.MarshalOptions{Deterministic: true}
	d.before, errB = encode.MarshalAppend(d.before[:0], b.Interface())
	d.after, errA = encode.MarshalAppend(d.after[:0], a.Interface())
	if errB == nil && errA == nil && bytes.Equal(d.before, d.after) {
		return true
	}
	return proto.Equal(b.Interface(), a.Interface())
}

// nested descends; an empty message that comes or goes is itself the change.
func (d *differ) nested(path string, b, a protoreflect.Message, fd protoreflect.FieldDescriptor) {
	n := len(d.changes)
	d.message(path, b.Get(fd).Message(), a.Get(fd).Message())
	if len(d.changes) == n {
		d.add(path, show(b, fd), show(a, fd))
	}
}

func (d *differ) lists(path string, b, a protoreflect.List, fd protoreflect.FieldDescriptor) {
	if b.Len() != a.Len() && fd.Kind() != protoreflect.MessageKind {
		d.add(path, yamlText(protoreflect.ValueOfList(b), fd), yamlText(protoreflect.ValueOfList(a), fd))
		return
	}
	for i := range max(b.Len(), a.Len()) {
		at := path + "[" + strconv.Itoa(i) + "]"
		switch {
		case i >= b.Len():
			d.add(at, "", item(a.Get(i), fd))
		case i >= a.Len():
			d.add(at, item(b.Get(i), fd), "")
		case fd.Kind() == protoreflect.MessageKind && d.equalMessages(b.Get(i).Message(), a.Get(i).Message()):
		case fd.Kind() != protoreflect.MessageKind && b.Get(i).Equal(a.Get(i)):
		case fd.Kind() == protoreflect.MessageKind && !isScalarMessage(fd.Message()):
			d.message(at, b.Get(i).Message(), a.Get(i).Message())
		default:
			d.add(at, item(b.Get(i), fd), item(a.Get(i), fd))
		}
	}
}

func (d *differ) maps(path string, b, a protoreflect.Map, fd protoreflect.FieldDescriptor) {
	var keys []string
	collect := func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k.String())
		return true
	}
	b.Range(collect)
	a.Range(collect)
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		key := protoreflect.ValueOfString(k).MapKey()
		var before, after string
		if b.Has(key) {
			before = item(b.Get(key), fd.MapValue())
		}
		if a.Has(key) {
			after = item(a.Get(key), fd.MapValue())
		}
		if b.Has(key) != a.Has(key) || before != after {
			d.add(path+"["+k+"]", before, after)
		}
	}
}

// show renders a field of a message; "" when it is not set.
func show(m protoreflect.Message, fd protoreflect.FieldDescriptor) string {
	switch {
	case !m.Has(fd):
		return ""
	case isSecret(fd):
		return secretText
	case fd.Kind() == protoreflect.MessageKind && !isScalarMessage(fd.Message()):
		m = proto.Clone(m.Interface()).ProtoReflect()
		hideSecrets(m)
	}
	return yamlText(m.Get(fd), fd)
}

// item renders one value of a list or map.
func item(v protoreflect.Value, fd protoreflect.FieldDescriptor) string {
	if fd.Kind() == protoreflect.MessageKind && !isScalarMessage(fd.Message()) {
		m := proto.Clone(v.Message().Interface()).ProtoReflect()
		hideSecrets(m)
		n, err := encodeMessage(m)
		if err != nil {
			return "(" + err.Error() + ")"
		}
		return dumpText(n)
	}
	n, err := encodeValue(v, fd)
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return dumpText(n)
}

func hideSecrets(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case isSecret(fd) && fd.Kind() == protoreflect.StringKind:
			m.Set(fd, protoreflect.ValueOfString(secretText))
		case isSecret(fd):
			m.Clear(fd)
		case fd.IsMap() || fd.Kind() != protoreflect.MessageKind:
		case fd.IsList():
			for i := range v.List().Len() {
				hideSecrets(v.List().Get(i).Message())
			}
		default:
			hideSecrets(v.Message())
		}
		return true
	})
}
