package exchange

import (
	"crypto/rand"
	"encoding/hex"

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
