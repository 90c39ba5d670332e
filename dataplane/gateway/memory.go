package gateway

import "unsafe"

// memory holds strings that are made for one exchange, and is used again for the
// next.
type memory struct{ b []byte }

// maxMemory is how much is kept from one exchange to the next.
const maxMemory = 16 << 10

// from returns what was appended to b behind the first start bytes, as a string
// that holds until reset.
func (m *memory) from(start int) string { return textOf(m.b[start:]) }

// reset forgets all strings, and keeps the memory.
func (m memory) reset() memory {
	if cap(m.b) > maxMemory {
		return memory{}
	}
	return memory{m.b[:0]}
}

// textOf is b as a string without a copy: it holds as long as b is not written.
func textOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
