package exchange

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	mathrand "math/rand/v2"
	"unsafe"

	"portcullis.dev/portcullis/pkg/httppath"
)

// NewID returns a fresh request id: 128 random bits in 32 hexadecimal digits.
func NewID() string {
	var b [16]byte
	var text [32]byte
	rand.Read(b[:])
	hex.Encode(text[:], b[:])
	return string(text[:])
}

// Name gives the exchange a fresh ID of 128 random bits in 32 hexadecimal digits.
// It lies in the exchange and holds until Reset; it costs no allocation. The bits
// come from the runtime's ChaCha8, which the operating system seeds: an id is a
// name, unique but not a secret.
func (e *Exchange) Name() {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:8], mathrand.Uint64())
	binary.LittleEndian.PutUint64(b[8:], mathrand.Uint64())
	hex.Encode(e.id[:], b[:])
	e.ID = unsafe.String(&e.id[0], len(e.id))
}

// ValidID tells whether an id that came from outside may name an exchange: 8 to
// 128 letters, digits, '-', '_' or '.'.
func ValidID(id string) bool {
	if len(id) < 8 || len(id) > 128 {
		return false
	}
	for i := 0; i < len(id); i++ {
		if c := id[i]; !httppath.Unreserved(c) || c == '~' {
			return false
		}
	}
	return true
}
