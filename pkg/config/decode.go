package config

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// decoder writes one document's nodes onto a resource.
type decoder struct {
	doc      *Document
	key      Key
	problems Problems
}

func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	if len(d.problems) < maxProblems {
		d.problems = append(d.problems, &Problem{
			Key: d.key, Path: path, File: d.doc.file, Line: n.Line + d.doc.line, Column: n.Column,
			Reason: fmt.Sprintf(format, args...),
		})
	}
}

var topFields = []string{"apiVersion", "kind", "metadata", "spec"}

func (d *decoder) resource(n *yaml.Node) *configv1.Resource {
	if !d.is(n, "", yaml.MappingNode, "a mapping with apiVersion, kind, metadata and spec") {
		return nil
	}
	fields := map[string]*yaml.Node{}
	d.pairs(n, "", func(key, value *yaml.Node) {
		for _, f := range topFields {
			if key.Value == f {
				fields[f] = value
				return
			}
		}
		d.fail(key, "", "unknown field %q%s: expected %s", shorten(key.Value), didYouMean(key.Value, topFields), quoteList(topFields))
	})
	d.constant(n, fields["apiVersion"])
	r := &configv1.Resource{Metadata: &configv1.Metadata{}}
	m := r.ProtoReflect()
	spec := d.kind(n, fields["kind"])
	if meta := fields["metadata"]; meta == nil {
		d.fail(n, "metadata", "is missing: expected a mapping with at least name")
	} else {
		if spec != nil {
			d.key = d.peekKey(string(spec.Message().Name()), meta)
		}
		d.message(meta, r.Metadata.ProtoReflect(), "metadata")
	}
	if spec == nil {
		return nil
	}
	value := m.Mutable(spec)
	if n := fields["spec"]; n != nil {
		d.message(n, value.Message(), "spec")
	}
	if r.Metadata.Workspace == "" && d.key.Kind != KindWorkspace {
		r.Metadata.Workspace = DefaultWorkspace
	}
	return r
}

func (d *decoder) constant(n, value *yaml.Node) {
	if value == nil {
		d.fail(n, "apiVersion", "is missing: expected %q", APIVersion)
	} else if value.Kind != yaml.ScalarNode || value.Value != APIVersion {
		d.fail(value, "apiVersion", "expected %q, found %s", APIVersion, describe(value))
	}
}

func (d *decoder) kind(n, value *yaml.Node) protoreflect.FieldDescriptor {
	if value == nil {
		d.fail(n, "kind", "is missing: expected %s", quoteList(Kinds()))
		return nil
	}
	if value.Kind == yaml.ScalarNode {
		if spec := specField(value.Value); spec != nil {
			return spec
		}
	}
	d.fail(value, "kind", "expected %s, found %s%s", quoteList(Kinds()), describe(value), didYouMean(value.Value, Kinds()))
	return nil
}

// peekKey reads the name ahead, so that problems in the metadata name the
// resource too.
func (d *decoder) peekKey(kind string, meta *yaml.Node) Key {
	key := Key{Kind: kind}
	if kind != KindWorkspace {
		key.Workspace = DefaultWorkspace
	}
	for _, f := range []struct {
		name string
		to   *string
	}{{"workspace", &key.Workspace}, {"name", &key.Name}} {
		if v := child(meta, f.name); v != nil && v.Kind == yaml.ScalarNode && v.Value != "" {
			*f.to = shorten(v.Value)
		}
	}
	return key
}

// is reports a problem unless the node has the kind and is written plainly.
func (d *decoder) is(n *yaml.Node, path string, kind yaml.Kind, expected string) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		d.fail(n, path, "aliases (*%s) are not accepted: expected %s, written out", n.Value, expected)
	case n.Anchor != "":
		d.fail(n, path, "anchors (&%s) are not accepted: expected %s", n.Anchor, expected)
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(n, path, "tags (%s) are not accepted: expected %s", n.Tag, expected)
	case n.Kind != kind:
		d.fail(n, path, "expected %s, found %s", expected, describe(n))
	default:
		return true
	}
	return false
}

// pairs calls f for each key of a mapping whose key is a plain string given once.
func (d *decoder) pairs(n *yaml.Node, path string, f func(key, value *yaml.Node)) {
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !d.is(key, path, yaml.ScalarNode, "a field name") {
			continue
		}
		if key.ShortTag() != "!!str" {
			d.fail(key, path, "expected a field name, found %s: quote it", describe(key))
			continue
		}
		if line, ok := seen[key.Value]; ok {
			d.fail(key, path, "%q is given twice: expected it once, first given on line %d", shorten(key.Value), line)
			continue
		}
		seen[key.Value] = key.Line + d.doc.line
		f(key, value)
	}
}

func (d *decoder) message(n *yaml.Node, m protoreflect.Message, path string) {
	names := fieldNames(m.Descriptor())
	if !d.is(n, path, yaml.MappingNode, "a mapping with "+strings.Join(names, ", ")) {
		return
	}
	d.pairs(n, path, func(key, value *yaml.Node) {
		fd := m.Descriptor().Fields().ByJSONName(key.Value)
		if fd == nil {
			d.fail(key, path, "unknown field %q%s: expected %s", shorten(key.Value), didYouMean(key.Value, names), quoteList(names))
			return
		}
		if group := fd.ContainingOneof(); group != nil && !group.IsSynthetic() {
			if other := m.WhichOneof(group); other != nil {
				d.fail(key, path, "%q together with %q: expected only one of %s", fd.JSONName(), other.JSONName(), quoteList(groupNames(group)))
				return
			}
		}
		d.field(value, m, fd, path+"."+fd.JSONName())
	})
}

func (d *decoder) field(n *yaml.Node, m protoreflect.Message, fd protoreflect.FieldDescriptor, path string) {
	switch {
	case fd.IsList():
		if !d.is(n, path, yaml.SequenceNode, "a list, each "+expectation(fd)) {
			return
		}
		list := m.Mutable(fd).List()
		for i, item := range n.Content {
			at := path + "[" + strconv.Itoa(i) + "]"
			if v, ok := d.value(item, list.NewElement, fd, at); ok {
				list.Append(v)
			}
		}
	case fd.IsMap():
		if !d.is(n, path, yaml.MappingNode, "a mapping of strings") {
			return
		}
		values := m.Mutable(fd).Map()
		d.pairs(n, path, func(key, value *yaml.Node) {
			if v, ok := d.value(value, values.NewValue, fd.MapValue(), path+"["+shorten(key.Value)+"]"); ok {
				values.Set(protoreflect.ValueOfString(key.Value).MapKey(), v)
			}
		})
	default:
		if v, ok := d.value(n, func() protoreflect.Value { return m.NewField(fd) }, fd, path); ok {
			m.Set(fd, v)
		}
	}
}

// value decodes one value; make gives a fresh one for a message.
func (d *decoder) value(n *yaml.Node, fresh func() protoreflect.Value, fd protoreflect.FieldDescriptor, path string) (protoreflect.Value, bool) {
	if fd.Kind() == protoreflect.MessageKind && !isScalarMessage(fd.Message()) {
		v := fresh()
		d.message(n, v.Message(), path)
		return v, true
	}
	expected := expectation(fd)
	if !d.is(n, path, yaml.ScalarNode, expected) {
		return protoreflect.Value{}, false
	}
	v, hint, ok := scalar(n, fd)
	if !ok {
		d.fail(n, path, "expected %s, found %s%s", expected, describe(n), hint)
	}
	return v, ok
}

func fieldNames(m protoreflect.MessageDescriptor) []string {
	names := make([]string, m.Fields().Len())
	for i := range names {
		names[i] = m.Fields().Get(i).JSONName()
	}
	return names
}

func groupNames(group protoreflect.OneofDescriptor) []string {
	names := make([]string, group.Fields().Len())
	for i := range names {
		names[i] = group.Fields().Get(i).JSONName()
	}
	return names
}

// describe says what a node is, for "found …".
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!null":
			return "nothing"
		case "!!int", "!!float":
			return "the number " + shorten(n.Value)
		case "!!bool":
			return n.Value
		case "!!timestamp":
			return "the time " + shorten(n.Value)
		}
		return strconv.Quote(shorten(n.Value))
	}
	return "something else"
}

// shorten bounds what a message repeats of its input.
func shorten(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
