package config

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// EncodeYAML writes the resources as documents that Decode reads back as they
// are. Fields stand in the order of their declaration, maps in the order of their
// keys, so that equal resources give equal text.
func EncodeYAML(w io.Writer, rs ...*configv1.Resource) error {
	for i, r := range rs {
		n, err := encodeResource(r)
		if err != nil {
			return err
		}
		text, err := yaml.Dump(n, yaml.WithLineWidth(-1), yaml.WithIndent(2))
		if err != nil {
			return fmt.Errorf("%s: %w", KeyOf(r), err)
		}
		if i > 0 {
			text = append([]byte("---\n"), text...)
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	return nil
}

func encodeResource(r *configv1.Resource) (*yaml.Node, error) {
	key := KeyOf(r)
	if key.Kind == "" {
		return nil, fmt.Errorf("resource %q: has no spec", r.GetMetadata().GetName())
	}
	if !normalized(r) {
		r = normalize(r)
	}
	meta, err := encodeMessage(r.GetMetadata().ProtoReflect())
	if err != nil {
		return nil, fmt.Errorf("%s: metadata%w", key, err)
	}
	spec, err := encodeMessage(r.ProtoReflect().Get(specField(key.Kind)).Message())
	if err != nil {
		return nil, fmt.Errorf("%s: spec%w", key, err)
	}
	return mapping(
		text("apiVersion"), text(APIVersion), text("kind"), text(key.Kind),
		text("metadata"), meta, text("spec"), spec), nil
}

func mapping(content ...*yaml.Node) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: content}
	if len(content) == 0 {
		n.Style = yaml.FlowStyle
	}
	return n
}

func sequence(content []*yaml.Node) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: content}
	if !slices.ContainsFunc(content, func(c *yaml.Node) bool { return c.Kind != yaml.ScalarNode || len(c.Value) > 40 }) {
		n.Style = yaml.FlowStyle
	}
	return n
}

// text is a string in the style in which it survives.
func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	switch {
	case isBlock(s):
		n.Style = yaml.LiteralStyle
	case !isPlain(s):
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// isPlain reports whether every YAML parser reads s, written without quotes, as
// the string s. What it does not know it quotes.
func isPlain(s string) bool {
	if s == "" || !isAlnum(s[0]) && s[0] != '/' && s[0] != '_' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && strings.IndexByte("-._/+@", c) < 0 && !(c == ':' && i+1 < len(s) && s[i+1] == '/') {
			return false
		}
	}
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null":
		return false
	}
	// Numbers and times start with a digit; a host such as 1.example is quoted too.
	return s[0] < '0' || s[0] > '9'
}

// isPlainDuration reports whether s is digits and units, the last of them a unit
// of time: what every YAML parser reads as a string.
func isPlainDuration(s string) bool {
	for i := range len(s) {
		if (s[i] < '0' || s[i] > '9') && strings.IndexByte("dhms", s[i]) < 0 {
			return false
		}
	}
	return s != "" && s[0] >= '0' && s[0] <= '9' && strings.IndexByte("dhms", s[len(s)-1]) >= 0
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// isBlock reports whether s is lines of printable ASCII, such as PEM, that a
// literal block keeps byte for byte.
func isBlock(s string) bool {
	if !strings.HasSuffix(s, "\n") || strings.HasSuffix(s, "\n\n") || strings.ContainsAny(s[:1], " \n") {
		return false
	}
	for line := range strings.Lines(s) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasSuffix(line, " ") {
			return false
		}
		for i := range len(line) {
			if line[i] < ' ' || line[i] > '~' {
				return false
			}
		}
	}
	return true
}

func encodeMessage(m protoreflect.Message) (*yaml.Node, error) {
	var content []*yaml.Node
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		n, err := encodeField(m.Get(fd), fd)
		if err != nil {
			return nil, fmt.Errorf(".%s%w", fd.JSONName(), err)
		}
		if n != nil {
			content = append(content, text(fd.JSONName()), n)
		}
	}
	return mapping(content...), nil
}

func encodeField(v protoreflect.Value, fd protoreflect.FieldDescriptor) (*yaml.Node, error) {
	switch {
	case fd.IsList():
		items := make([]*yaml.Node, v.List().Len())
		for i := range items {
			n, err := encodeValue(v.List().Get(i), fd)
			if err != nil {
				return nil, fmt.Errorf("[%d]%w", i, err)
			}
			items[i] = n
		}
		return sequence(items), nil
	case fd.IsMap():
		var keys []string
		v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
			keys = append(keys, k.String())
			return true
		})
		slices.Sort(keys)
		var content []*yaml.Node
		for _, k := range keys {
			n, err := encodeValue(v.Map().Get(protoreflect.ValueOfString(k).MapKey()), fd.MapValue())
			if err != nil || !utf8.ValidString(k) {
				return nil, fmt.Errorf("[%q]%w", k, cmpErr(err))
			}
			content = append(content, text(k), n)
		}
		return mapping(content...), nil
	}
	return encodeValue(v, fd)
}

func cmpErr(err error) error {
	if err == nil {
		return errNotUTF8
	}
	return err
}

var errNotUTF8 = fmt.Errorf(": is not UTF-8")

func encodeValue(v protoreflect.Value, fd protoreflect.FieldDescriptor) (*yaml.Node, error) {
	plain := func(tag, s string) (*yaml.Node, error) {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: s}, nil
	}
	switch fd.Kind() {
	case protoreflect.StringKind:
		if !utf8.ValidString(v.String()) {
			return nil, errNotUTF8
		}
		return text(v.String()), nil
	case protoreflect.BoolKind:
		return plain("!!bool", strconv.FormatBool(v.Bool()))
	case protoreflect.Int32Kind:
		return plain("!!int", strconv.FormatInt(v.Int(), 10))
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind:
		return plain("!!int", strconv.FormatUint(v.Uint(), 10))
	case protoreflect.DoubleKind:
		return plain("!!float", strconv.FormatFloat(v.Float(), 'f', -1, 64))
	case protoreflect.BytesKind:
		return text(base64.StdEncoding.EncodeToString(v.Bytes())), nil
	case protoreflect.EnumKind:
		value := fd.Enum().Values().ByNumber(v.Enum())
		if value == nil || value.Number() == 0 {
			return nil, fmt.Errorf(": unknown value %d", v.Enum())
		}
		return text(enumName(fd.Enum(), value)), nil
	case protoreflect.MessageKind:
		switch m := v.Message().Interface().(type) {
		case *durationpb.Duration:
			return plain("!!str", FormatDuration(m.AsDuration()))
		case *timestamppb.Timestamp:
			n, err := plain("!!timestamp", m.AsTime().Format(time.RFC3339Nano))
			return n, err
		}
		return encodeMessage(v.Message())
	}
	return nil, fmt.Errorf(": cannot write a %v", fd.Kind())
}

// yamlText renders one field for people.
func yamlText(v protoreflect.Value, fd protoreflect.FieldDescriptor) string {
	n, err := encodeField(v, fd)
	if err != nil {
		return "(" + strings.TrimPrefix(err.Error(), ": ") + ")"
	}
	return dumpText(n)
}

// dumpText writes a node. A scalar that stands as it is needs no emitter, which
// would take most of the time of a diff.
func dumpText(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode && n.Style == 0 {
		switch {
		case n.Tag == "!!bool", n.Tag == "!!int", n.Tag == "!!str" && (isPlain(n.Value) || isPlainDuration(n.Value)):
			return n.Value
		}
	}
	out, err := yaml.Dump(n, yaml.WithLineWidth(-1), yaml.WithIndent(2))
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return string(bytes.TrimSuffix(out, []byte("\n")))
}
