package http1

import (
	"encoding/binary"
	"math/bits"
	"unsafe"
)

// Classes of bytes.
const (
	inToken  = 1 << iota // RFC 9110, 5.6.2
	inValue              // field-vchar, blanks and obs-text of RFC 9110, 5.5
	inTarget             // visible ASCII
	inMethod             // A-Z and '-'
)

// classes says of every byte what it may stand in. Never written.
var classes = makeClasses()

func makeClasses() (t [256]uint8) {
	for c := range t {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z' && c < 0x80
		if letter || c >= '0' && c <= '9' {
			t[c] |= inToken
		}
		if c >= ' ' && c != 0x7f || c == '\t' {
			t[c] |= inValue
		}
		if c > ' ' && c < 0x7f {
			t[c] |= inTarget
		}
		if c >= 'A' && c <= 'Z' || c == '-' {
			t[c] |= inMethod
		}
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] |= inToken
	}
	return t
}

// skip returns the index of the first byte of b at or behind i that is not of
// the class, or len(b).
func skip(b []byte, i int, class uint8) int {
	for ; uint(i) < uint(len(b)); i++ {
		if classes[b[i]]&class == 0 {
			return i
		}
	}
	return len(b)
}

// valueEnd is skip for inValue, eight bytes at a time: most bytes of a head
// stand in values.
func valueEnd(b []byte, i int) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for i+8 <= len(b) {
		x := binary.LittleEndian.Uint64(b[i:])
		// The lowest marked byte is below ' ' or is DEL; borrows only spoil higher ones.
		del := x ^ 0x7f*ones
		marked := ((x-' '*ones)&^x | (del-ones)&^del) & tops
		if marked == 0 {
			i += 8
			continue
		}
		i += bits.TrailingZeros64(marked) >> 3
		if b[i] != '\t' {
			return i
		}
		i++
	}
	return skip(b, i, inValue)
}

// text is b as a string without a copy: it holds as long as b is not written.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesOf is s as bytes without a copy; nobody may write them.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
