package config

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	durationName  protoreflect.FullName = "google.protobuf.Duration"
	timestampName protoreflect.FullName = "google.protobuf.Timestamp"
)

// isScalarMessage reports whether YAML writes the message as one value.
func isScalarMessage(m protoreflect.MessageDescriptor) bool {
	return m.FullName() == durationName || m.FullName() == timestampName
}

// expectation says what a field's value must be; for a list, each of its values.
func expectation(fd protoreflect.FieldDescriptor) string {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return "a string"
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.Int32Kind:
		return "a whole number from -2147483648 to 2147483647"
	case protoreflect.Uint32Kind:
		return "a whole number from 0 to 4294967295"
	case protoreflect.Uint64Kind:
		return "a whole number, 0 or more"
	case protoreflect.DoubleKind:
		return "a number"
	case protoreflect.BytesKind:
		return "base64"
	case protoreflect.EnumKind:
		return quoteList(enumNames(fd.Enum()))
	case protoreflect.MessageKind:
		switch fd.Message().FullName() {
		case durationName:
			return "a duration such as 250ms, 1s, 1h or 1d"
		case timestampName:
			return "a time such as 2026-01-02T15:04:05Z"
		}
		return "a mapping with " + strings.Join(fieldNames(fd.Message()), ", ")
	}
	return fd.Kind().String()
}

// scalar reads one value. hint says more about a value that was refused.
func scalar(n *yaml.Node, fd protoreflect.FieldDescriptor) (v protoreflect.Value, hint string, ok bool) {
	tag := n.ShortTag()
	switch fd.Kind() {
	case protoreflect.StringKind:
		if tag != "!!str" {
			if tag != "!!null" {
				hint = ": quote it"
			}
			return v, hint, false
		}
		return protoreflect.ValueOfString(n.Value), "", true
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n.Value == "true"), "", tag == "!!bool" && (n.Value == "true" || n.Value == "false")
	case protoreflect.Int32Kind:
		i, err := strconv.ParseInt(n.Value, 10, 32)
		return protoreflect.ValueOfInt32(int32(i)), "", err == nil && tag == "!!int"
	case protoreflect.Uint32Kind:
		i, err := strconv.ParseUint(n.Value, 10, 32)
		return protoreflect.ValueOfUint32(uint32(i)), "", err == nil && tag == "!!int"
	case protoreflect.Uint64Kind:
		i, err := strconv.ParseUint(n.Value, 10, 64)
		return protoreflect.ValueOfUint64(i), "", err == nil && tag == "!!int"
	case protoreflect.DoubleKind:
		f, err := strconv.ParseFloat(n.Value, 64)
		number := tag == "!!int" || tag == "!!float"
		return protoreflect.ValueOfFloat64(f), "", err == nil && number && !math.IsNaN(f) && !math.IsInf(f, 0)
	case protoreflect.BytesKind:
		b, err := base64.StdEncoding.Strict().DecodeString(n.Value)
		return protoreflect.ValueOfBytes(b), "", err == nil && !strings.ContainsAny(n.Value, "\r\n") && tag == "!!str"
	case protoreflect.EnumKind:
		number, known := enumValue(fd.Enum(), n.Value)
		if !known {
			hint = didYouMean(n.Value, enumNames(fd.Enum()))
		}
		return protoreflect.ValueOfEnum(number), hint, known
	case protoreflect.MessageKind:
		return scalarMessage(n, fd)
	}
	return v, "", false
}

func scalarMessage(n *yaml.Node, fd protoreflect.FieldDescriptor) (v protoreflect.Value, hint string, ok bool) {
	if fd.Message().FullName() == durationName {
		if n.ShortTag() == "!!int" || n.ShortTag() == "!!float" {
			return v, ": add a unit", false
		}
		d, err := ParseDuration(n.Value)
		return protoreflect.ValueOfMessage(durationpb.New(d).ProtoReflect()), "", err == nil
	}
	t, err := time.Parse(time.RFC3339Nano, n.Value)
	if err != nil || t.Year() < 1 || t.UTC().Year() > 9999 || t.UTC().Year() < 1 {
		return v, "", false
	}
	return protoreflect.ValueOfMessage(timestamppb.New(t).ProtoReflect()), "", true
}

// ParseDuration reads a duration of 0 or more: Go's notation, and days of 24
// hours before it, such as 1d or 1d12h.
func ParseDuration(s string) (time.Duration, error) {
	fail := fmt.Errorf("%q: expected a duration such as 250ms, 1s, 1h or 1d", shorten(s))
	if s == "" || s[0] < '0' || s[0] > '9' || s == "0" {
		return 0, fail
	}
	var days time.Duration
	if n, rest, ok := strings.Cut(s, "d"); ok {
		count, err := strconv.ParseUint(n, 10, 32)
		if err != nil || count > math.MaxInt64/uint64(24*time.Hour) {
			return 0, fail
		}
		days = time.Duration(count) * 24 * time.Hour
		if s = rest; s == "" {
			return days, nil
		}
		if s[0] < '0' || s[0] > '9' || s == "0" {
			return 0, fail
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > math.MaxInt64-days {
		return 0, fail
	}
	return days + d, nil
}

// FormatDuration writes what ParseDuration reads, as short as it can.
func FormatDuration(d time.Duration) string {
	if d > 0 && d%(24*time.Hour) == 0 {
		return strconv.FormatInt(int64(d/(24*time.Hour)), 10) + "d"
	}
	s := d.String()
	if d >= time.Minute {
		s = strings.TrimSuffix(s, "m0s") + map[bool]string{true: "m"}[strings.HasSuffix(s, "m0s")]
		if strings.HasSuffix(s, "h0m") {
			s = strings.TrimSuffix(s, "0m")
		}
	}
	return s
}

// enumPrefix is what protobuf's style puts before each name of an enum.
func enumPrefix(e protoreflect.EnumDescriptor) string {
	return strings.TrimSuffix(string(e.Values().ByNumber(0).Name()), "UNSPECIFIED")
}

// enumNames returns an enum's values as written in YAML, without the unspecified
// one, which is written by leaving the field out.
func enumNames(e protoreflect.EnumDescriptor) []string {
	var names []string
	for i := range e.Values().Len() {
		if v := e.Values().Get(i); v.Number() != 0 {
			names = append(names, enumName(e, v))
		}
	}
	return names
}

func enumName(e protoreflect.EnumDescriptor, v protoreflect.EnumValueDescriptor) string {
	return strings.ToLower(strings.TrimPrefix(string(v.Name()), enumPrefix(e)))
}

func enumValue(e protoreflect.EnumDescriptor, name string) (protoreflect.EnumNumber, bool) {
	for i := range e.Values().Len() {
		if v := e.Values().Get(i); v.Number() != 0 && enumName(e, v) == name {
			return v.Number(), true
		}
	}
	return 0, false
}
