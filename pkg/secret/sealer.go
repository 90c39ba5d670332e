// Package secret seals what is stored: AES-256-GCM under keys that a file or the
// environment provides, with the key's id in each blob so that keys can be
// rotated. It owns the keys' format and the words for a value that must not be
// printed. It must not know what is sealed, nor where it is kept.
package secret

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
)

// KeySize is the length of a key in bytes: AES-256.
const KeySize = 32

// Overhead is how many bytes longer a blob is than what it seals: format, key
// id, nonce (12) and tag (16).
const Overhead = headerSize + subtle.AESGCMIVSize + subtle.AESGCMTagSize

const (
	format     = 1
	headerSize = 1 + 4
)

// ErrUnknownKey says that a blob was sealed under a key that is not here.
var ErrUnknownKey = errors.New("sealed under a key that is not in the key file")

// ErrNotSealed says that a blob is cut short, altered, was sealed for another
// place, or is no blob at all.
var ErrNotSealed = errors.New("sealed data is damaged or belongs elsewhere")

// Key is one sealing key. It prints as "(secret)".
type Key struct{ bytes [KeySize]byte }

// NewKey draws a key from the system's random source.
func NewKey() Key {
	var k Key
	rand.Read(k.bytes[:]) // never fails, see crypto/rand
	return k
}

// KeyOf makes a key of exactly KeySize bytes and refuses one that is all the
// same byte: nobody draws such a key, people type it.
func KeyOf(b []byte) (Key, error) {
	if len(b) != KeySize {
		return Key{}, fmt.Errorf("a key has %d bytes, this one has %d", KeySize, len(b))
	}
	same := true
	for _, c := range b {
		same = same && c == b[0]
	}
	if same {
		return Key{}, errors.New("a key must be random, this one repeats one byte")
	}
	return Key{[KeySize]byte(b)}, nil
}

// ID tells keys apart in blobs. It is derived from the key, so that a key cannot
// be filed under another's id; it tells nothing else about the key.
func (k Key) ID() uint32 {
	sum := sha256.Sum256(append([]byte("portcullis sealing key id\x00"), k.bytes[:]...))
	return binary.BigEndian.Uint32(sum[:])
}

// Format hides the key under every verb.
func (Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, hidden) }

type ring struct {
	primary uint32
	keys    map[uint32]*subtle.AESGCM
}

// Sealer seals with the first of its keys and opens with any of them. It is safe
// for concurrent use. One key may seal 2^32 blobs (NIST SP 800-38D, 8.3: nonces
// are random).
type Sealer struct{ ring atomic.Pointer[ring] }

// New makes a sealer. The first key seals; the others open what was sealed
// before a rotation.
func New(keys ...Key) (*Sealer, error) {
	s := new(Sealer)
	if err := s.SetKeys(keys...); err != nil {
		return nil, err
	}
	return s, nil
}

// SetKeys replaces the keys: the next Seal uses the first of them.
func (s *Sealer) SetKeys(keys ...Key) error {
	if len(keys) == 0 {
		return errors.New("no sealing key")
	}
	r := &ring{primary: keys[0].ID(), keys: make(map[uint32]*subtle.AESGCM, len(keys))}
	for _, k := range keys {
		if _, twice := r.keys[k.ID()]; twice {
			return fmt.Errorf("sealing key %08x is listed twice", k.ID())
		}
		aead, err := subtle.NewAESGCM(k.bytes[:])
		if err != nil {
			return fmt.Errorf("sealing key %08x: %w", k.ID(), err)
		}
		r.keys[k.ID()] = aead
	}
	s.ring.Store(r)
	return nil
}

// Seal encrypts plain and binds it to aad, which names the place where the blob
// is kept: Open with another aad fails, so a blob cannot be moved. Neither slice
// is kept.
func (s *Sealer) Seal(plain, aad []byte) ([]byte, error) {
	r := s.ring.Load()
	head := header(r.primary)
	sealed, err := r.keys[r.primary].Encrypt(plain, bind(head, aad))
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return append(head[:], sealed...), nil
}

// Open decrypts a blob that Seal made with the same aad. The error is ErrUnknownKey
// or ErrNotSealed.
func (s *Sealer) Open(sealed, aad []byte) ([]byte, error) {
	id, ok := keyID(sealed)
	if !ok {
		return nil, ErrNotSealed
	}
	aead, ok := s.ring.Load().keys[id]
	if !ok {
		return nil, fmt.Errorf("%w (key %08x)", ErrUnknownKey, id)
	}
	plain, err := aead.Decrypt(sealed[headerSize:], bind([headerSize]byte(sealed), aad))
	if err != nil {
		return nil, ErrNotSealed
	}
	return plain, nil
}

// Stale reports whether a blob was sealed under another key than the one that
// Seal uses now: after a rotation, whoever keeps it opens it and seals it again,
// and then the old key can go.
func (s *Sealer) Stale(sealed []byte) bool {
	id, ok := keyID(sealed)
	return ok && id != s.ring.Load().primary
}

func header(id uint32) [headerSize]byte {
	var h [headerSize]byte
	h[0] = format
	binary.BigEndian.PutUint32(h[1:], id)
	return h
}

func keyID(sealed []byte) (uint32, bool) {
	if len(sealed) < Overhead || sealed[0] != format {
		return 0, false
	}
	return binary.BigEndian.Uint32(sealed[1:]), true
}

// The header is authenticated too: a later format must not be read as this one.
func bind(head [headerSize]byte, aad []byte) []byte {
	return append(head[:len(head):len(head)], aad...)
}
