package identity

import (
	"encoding/base32"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
)

// Lower-case base32 without padding: one double click selects it, and no
// character of it needs quoting in a shell or a URL.
var alphabet = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

var errText = errors.New("is cut short or mistyped")

// encodeText writes prefix, payload and a checksum of both: typing errors are
// found before anything is looked up or sent, and secret scanners find no
// strings that merely look alike.
func encodeText(prefix string, payload []byte) string {
	sum := crc32.ChecksumIEEE(append([]byte(prefix), payload...))
	return prefix + alphabet.EncodeToString(binary.BigEndian.AppendUint32(payload[:len(payload):len(payload)], sum))
}

// decodeText accepts exactly what encodeText writes.
func decodeText(prefix, s string, maxPayload int) ([]byte, error) {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok || len(rest) > alphabet.EncodedLen(maxPayload+4) {
		return nil, errText
	}
	raw, err := alphabet.DecodeString(rest)
	if err != nil || len(raw) < 4 {
		return nil, errText
	}
	payload := raw[:len(raw)-4]
	// The decoder passes over line ends and unused bits; the comparison does not.
	if encodeText(prefix, payload) != s {
		return nil, errText
	}
	return payload, nil
}
