package credential

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"io"
)

// An API key is pc_, 43 characters of base 62 drawn uniformly (256 bits), and
// six characters of base 62 that hold the CRC-32 of what precedes them: a typing
// error or a truncated paste is told from an unknown key without a lookup, and
// scanners for leaked secrets can be sure of what they found.
const (
	prefix      = "pc_"
	secretSize  = 43
	checkSize   = 6
	keySize     = len(prefix) + secretSize + checkSize
	hintSize    = len(prefix) + 5
	alphabet    = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	alphabetLen = uint32(len(alphabet))
)

// Generate makes a new API key. The key is shown once and never stored; sha is
// what is stored, hint is for people to recognise the key by. The error is that
// of the system's random source.
func Generate() (key string, sha [32]byte, hint string, err error) {
	out := make([]byte, 0, keySize)
	out = append(out, prefix...)
	var random [64]byte
	for len(out) < len(prefix)+secretSize {
		if _, err := io.ReadFull(rand.Reader, random[:]); err != nil {
			return "", sha, "", fmt.Errorf("generate an API key: %w", err)
		}
		for _, b := range random {
			// 248 is the largest multiple of 62 in a byte; what lies above would make
			// some characters likelier.
			if b < 248 && len(out) < len(prefix)+secretSize {
				out = append(out, alphabet[b%62])
			}
		}
	}
	out = appendCheck(out)
	return string(out), sha256.Sum256(out), string(out[:hintSize]), nil
}

// Parse says whether key has the form of an API key, checksum included, and
// returns what it is stored under. It does not allocate.
func Parse(key string) (sha [32]byte, ok bool) {
	if len(key) != keySize || key[:len(prefix)] != prefix {
		return sha, false
	}
	var buf [keySize]byte
	copy(buf[:], key)
	for _, c := range buf[len(prefix):] {
		if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z') {
			return sha, false
		}
	}
	var want [keySize]byte
	copy(want[:], buf[:keySize-checkSize])
	if appendCheck(want[:keySize-checkSize]); want != buf {
		return sha, false
	}
	return sha256.Sum256(buf[:]), true
}

// appendCheck appends the checksum of b, most significant digit first.
func appendCheck(b []byte) []byte {
	// crc32.ChecksumIEEE would make b escape to the heap.
	sum := ^uint32(0)
	for _, c := range b {
		sum = crc32.IEEETable[byte(sum)^c] ^ sum>>8
	}
	sum = ^sum
	var digits [checkSize]byte
	for i := checkSize - 1; i >= 0; i-- {
		digits[i] = alphabet[sum%alphabetLen]
		sum /= alphabetLen
	}
	return append(b, digits[:]...)
}
