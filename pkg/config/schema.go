package config

import (
	"encoding/json"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Schema returns one JSON Schema (draft-07) of every kind and policy, generated
// from the messages, for editors. It accepts what Decode accepts, but for what
// only Check can say.
func Schema() []byte {
	s := schema{definitions: map[string]any{}}
	var kinds []any
	fields := specs().Fields()
	for i := range fields.Len() {
		kinds = append(kinds, s.kind(fields.Get(i)))
	}
	out, err := json.MarshalIndent(map[string]any{
		"$schema":     "http://json-schema.org/draft-07/schema#",
		"$id":         "https://portcullis.dev/schema/v1.json",
		"title":       "Portcullis resource",
		"type":        "object",
		"required":    []string{"apiVersion", "kind", "metadata"},
		"properties":  map[string]any{"kind": map[string]any{"enum": Kinds()}},
		"oneOf":       kinds,
		"definitions": s.definitions,
	}, "", "  ")
	if err != nil {
		panic("config: a schema of maps and strings is JSON: " + err.Error())
	}
	return append(out, '\n')
}

type schema struct{ definitions map[string]any }

func (s schema) kind(spec protoreflect.FieldDescriptor) any {
	name := string(spec.Message().Name())
	metadata := s.message(specs().Parent().(protoreflect.MessageDescriptor).Fields().ByName("metadata").Message())
	return map[string]any{
		"title":                name,
		"description":          configv1.Describe(spec.Message().FullName()),
		"type":                 "object",
		"additionalProperties": false,
		"required":             []string{"apiVersion", "kind", "metadata"},
		"properties": map[string]any{
			"apiVersion": map[string]any{"const": APIVersion},
			"kind":       map[string]any{"const": name},
			"metadata":   map[string]any{"allOf": []any{metadata, map[string]any{"required": []string{"name"}}}},
			"spec":       s.message(spec.Message()),
		},
	}
}

// message defines a message once and returns a reference to it.
func (s schema) message(m protoreflect.MessageDescriptor) map[string]any {
	name := string(m.Name())
	ref := map[string]any{"$ref": "#/definitions/" + name}
	if _, ok := s.definitions[name]; ok {
		return ref
	}
	definition := map[string]any{"type": "object", "additionalProperties": false, "description": configv1.Describe(m.FullName())}
	s.definitions[name] = definition
	properties := map[string]any{}
	for i := range m.Fields().Len() {
		fd := m.Fields().Get(i)
		properties[fd.JSONName()] = described(s.field(fd), description(fd))
	}
	definition["properties"] = properties
	var groups []any
	for i := range m.Oneofs().Len() {
		if group := m.Oneofs().Get(i); !group.IsSynthetic() {
			groups = append(groups, onlyOne(group, exactlyOne(m.FullName())))
		}
	}
	if len(groups) > 0 {
		definition["allOf"] = groups
	}
	return ref
}

// exactlyOne reports whether Check asks for a member of the message's group.
func exactlyOne(m protoreflect.FullName) bool { return m != "portcullis.config.v1.ValueMatch" }

// onlyOne says that exactly one, or else at most one, of a group is given.
func onlyOne(group protoreflect.OneofDescriptor, exactly bool) any {
	var alternatives, any1 []any
	for _, name := range groupNames(group) {
		given := map[string]any{"required": []string{name}}
		alternatives = append(alternatives, given)
		any1 = append(any1, given)
	}
	if !exactly {
		alternatives = append(alternatives, map[string]any{"not": map[string]any{"anyOf": any1}})
	}
	return map[string]any{"oneOf": alternatives}
}

// description is what editors show of a field: what its own comment says, else
// what that of its message does.
func description(fd protoreflect.FieldDescriptor) string {
	if text := configv1.Describe(fd.FullName()); text != "" || fd.Message() == nil {
		return text
	}
	return configv1.Describe(fd.Message().FullName())
}

// described puts text before what a field's schema says already. What stands beside
// a $ref does not count (draft-07), so that is wrapped.
func described(field map[string]any, text string) map[string]any {
	if _, ok := field["$ref"]; ok {
		field = map[string]any{"allOf": []any{field}}
	}
	if said, ok := field["description"].(string); ok {
		text = strings.TrimSpace(text + " " + said)
	}
	field["description"] = text
	return field
}

func (s schema) field(fd protoreflect.FieldDescriptor) map[string]any {
	switch {
	case fd.IsMap():
		return map[string]any{"type": "object", "additionalProperties": s.value(fd.MapValue())}
	case fd.IsList():
		return map[string]any{"type": "array", "items": s.value(fd)}
	}
	return s.value(fd)
}

func (s schema) value(fd protoreflect.FieldDescriptor) map[string]any {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return map[string]any{"type": "boolean"}
	case protoreflect.Int32Kind:
		return map[string]any{"type": "integer", "minimum": -1 << 31, "maximum": 1<<31 - 1}
	case protoreflect.Uint32Kind:
		return map[string]any{"type": "integer", "minimum": 0, "maximum": 1<<32 - 1}
	case protoreflect.Uint64Kind:
		return map[string]any{"type": "integer", "minimum": 0}
	case protoreflect.DoubleKind:
		return map[string]any{"type": "number"}
	case protoreflect.BytesKind:
		return map[string]any{"type": "string", "contentEncoding": "base64"}
	case protoreflect.EnumKind:
		return map[string]any{"enum": enumNames(fd.Enum())}
	case protoreflect.MessageKind:
		switch fd.Message().FullName() {
		case durationName:
			return map[string]any{"type": "string", "pattern": `^(\d+d)?(\d+(\.\d*)?(ns|us|µs|μs|ms|s|m|h))*$`, "minLength": 2, "description": "A duration such as 250ms, 1s, 1h or 1d."}
		case timestampName:
			return map[string]any{"type": "string", "format": "date-time"}
		}
		return s.message(fd.Message())
	}
	return map[string]any{"type": "string"}
}
