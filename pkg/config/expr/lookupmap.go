package expr

import (
	"fmt"
	"reflect"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// Strings is a map of strings that is read where it lies, such as the header
// fields of a request.
type Strings interface {
	// Lookup returns the value of a key. An error, for a key with several values
	// where one is meant, fails the expression.
	Lookup(key string) (value string, found bool, err error)
	// Keys returns the keys, each once.
	Keys() []string
}

// MapOf makes a CEL value of s without copying it. It is valid as long as s.
func MapOf(s Strings) ref.Val { return stringsMap{s} }

type stringsMap struct{ s Strings }

var _ traits.Mapper = stringsMap{}

func (m stringsMap) Find(key ref.Val) (ref.Val, bool) {
	k, ok := key.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(key), false
	}
	value, found, err := m.s.Lookup(string(k))
	if err != nil {
		// An error counts as found: 'k' in m must fail too, not be false.
		return types.WrapErr(err), true
	}
	if !found {
		return nil, false
	}
	return types.String(value), true
}

func (m stringsMap) Get(key ref.Val) ref.Val {
	v, found := m.Find(key)
	if found || v != nil {
		return v
	}
	return types.NewErr("no such key: %v", key)
}

func (m stringsMap) Contains(key ref.Val) ref.Val {
	v, found := m.Find(key)
	if v != nil && types.IsUnknownOrError(v) {
		return v
	}
	return types.Bool(found)
}

func (m stringsMap) Size() ref.Val { return types.Int(len(m.s.Keys())) }

func (m stringsMap) Iterator() traits.Iterator {
	return types.NewStringList(types.DefaultTypeAdapter, m.s.Keys()).Iterator()
}

// copied gives the operations that expressions rarely need.
func (m stringsMap) copied() (traits.Mapper, error) {
	out := map[string]string{}
	for _, k := range m.s.Keys() {
		v, _, err := m.s.Lookup(k)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
		out[k] = v
	}
	return types.NewStringStringMap(types.DefaultTypeAdapter, out), nil
}

func (m stringsMap) Equal(other ref.Val) ref.Val {
	c, err := m.copied()
	if err != nil {
		return types.WrapErr(err)
	}
	return c.Equal(other)
}

func (m stringsMap) ConvertToNative(t reflect.Type) (any, error) {
	c, err := m.copied()
	if err != nil {
		return nil, err
	}
	return c.ConvertToNative(t)
}

func (m stringsMap) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.MapType:
		return m
	case types.TypeType:
		return types.MapType
	}
	return types.NewErr("type conversion error from map to '%s'", t.TypeName())
}

func (m stringsMap) Type() ref.Type { return types.MapType }
func (m stringsMap) Value() any     { return m.s }
