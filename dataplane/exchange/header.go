package exchange

import "iter"

// Field is one header field, name as received.
type Field struct{ Name, Value string }

// Header is a list of header fields in the order received. Names compare
// without regard to ASCII case (RFC 9110, 5.1). The zero Header is empty. Get
// and Has on the fields of an ordinary request beat a map: they touch one slice
// and allocate nothing.
type Header struct{ fields []Field }

// HeaderOf makes a header of the fields, which it keeps.
func HeaderOf(fields ...Field) Header { return Header{fields} }

// Get returns the first value of name, or "".
func (h *Header) Get(name string) string {
	v, _ := h.Lookup(name)
	return v
}

// Lookup returns the first value of name and whether there is one.
func (h *Header) Lookup(name string) (string, bool) {
	for i := range h.fields {
		if EqualFold(h.fields[i].Name, name) {
			return h.fields[i].Value, true
		}
	}
	return "", false
}

// Count returns how many fields have the name.
func (h *Header) Count(name string) int {
	n := 0
	for i := range h.fields {
		if EqualFold(h.fields[i].Name, name) {
			n++
		}
	}
	return n
}

// Values yields the values of name in order.
func (h *Header) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range h.fields {
			if EqualFold(h.fields[i].Name, name) && !yield(h.fields[i].Value) {
				return
			}
		}
	}
}

// Fields returns the fields. The slice belongs to the header.
func (h *Header) Fields() []Field { return h.fields }

// Len returns the number of fields.
func (h *Header) Len() int { return len(h.fields) }

// Add appends a field.
func (h *Header) Add(name, value string) { h.fields = append(h.fields, Field{name, value}) }

// Set replaces all fields of the name with one, in the place of the first.
func (h *Header) Set(name, value string) {
	for i := range h.fields {
		if EqualFold(h.fields[i].Name, name) {
			h.fields[i].Value = value
			h.deleteFrom(i+1, name)
			return
		}
	}
	h.Add(name, value)
}

// Del removes all fields of the name.
func (h *Header) Del(name string) { h.deleteFrom(0, name) }

// DelFunc removes the fields for which del returns true.
func (h *Header) DelFunc(del func(Field) bool) {
	kept := h.fields[:0]
	for _, f := range h.fields {
		if !del(f) {
			kept = append(kept, f)
		}
	}
	clear(h.fields[len(kept):])
	h.fields = kept
}

func (h *Header) deleteFrom(start int, name string) {
	j := start
	for i := start; i < len(h.fields); i++ {
		if !EqualFold(h.fields[i].Name, name) {
			h.fields[j] = h.fields[i]
			j++
		}
	}
	clear(h.fields[j:])
	h.fields = h.fields[:j]
}

func (h Header) reset() Header {
	clear(h.fields)
	return Header{h.fields[:0]}
}

// EqualFold compares ASCII without regard to case. Unlike strings.EqualFold it
// does not fold Unicode: the Kelvin sign is not a k.
func EqualFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z' {
			return false
		}
	}
	return true
}
