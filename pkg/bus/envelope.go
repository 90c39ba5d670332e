package bus

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	minKey  = 32  // bytes
	maxName = 253 // bytes
	// overlap is how long an older key still signs after a newer one has come.
	overlap = 10 * time.Second
)

// Why an envelope was not opened.
var (
	errMalformed  = errors.New("malformed envelope")
	errUnknownKey = errors.New("unknown key")
	errForged     = errors.New("wrong MAC")
)

// keyring holds the keys of the MAC. Time is an argument.
type keyring struct {
	mu   sync.RWMutex
	keys []*controlv1.BusKey // newest first
	// The key that signs until the newest takes over; nil before any key.
	signing  *controlv1.BusKey
	takeover time.Time
}

func sameKey(a, b *controlv1.BusKey) bool {
	return a.GetId() == b.GetId() && hmac.Equal(a.GetKey(), b.GetKey())
}

// set replaces the keys.
func (r *keyring) set(keys []*controlv1.BusKey, now time.Time) error {
	own := make([]*controlv1.BusKey, 0, len(keys))
	for _, k := range keys {
		if len(k.GetKey()) < minKey {
			return fmt.Errorf("%w: key %d has %d bytes, want at least %d", ErrMisuse, k.GetId(), len(k.GetKey()), minKey)
		}
		if slices.ContainsFunc(own, func(o *controlv1.BusKey) bool { return o.Id == k.Id }) {
			return fmt.Errorf("%w: two keys have the id %d", ErrMisuse, k.GetId())
		}
		own = append(own, proto.CloneOf(k))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.keys
	r.keys = own
	if len(old) > 0 && !now.Before(r.takeover) {
		r.signing = old[0]
	}
	switch {
	case len(own) == 0:
		r.signing = nil
	case r.signing == nil || !slices.ContainsFunc(own, func(k *controlv1.BusKey) bool { return sameKey(k, r.signing) }):
		r.signing, r.takeover = own[0], now
	case !sameKey(own[0], old[0]):
		r.takeover = now.Add(overlap)
	}
	return nil
}

// sign returns the key to seal with, or nil.
func (r *keyring) sign(now time.Time) *controlv1.BusKey {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.keys) > 0 && !now.Before(r.takeover) {
		return r.keys[0]
	}
	return r.signing
}

func (r *keyring) find(id uint32) *controlv1.BusKey {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, k := range r.keys {
		if k.Id == id {
			return k
		}
	}
	return nil
}

// mac is HMAC-SHA256 over every field of the envelope and the subject it travels
// on, each of them preceded by its length or of fixed size, so that no two
// envelopes have the same input.
func mac(key []byte, subject string, e *busv1.Envelope) []byte {
	h := hmac.New(sha256.New, key)
	var stack [512]byte
	b := append(stack[:0], "portcullis bus 1\x00"...)
	b = binary.BigEndian.AppendUint32(b, e.KeyId)
	b = binary.BigEndian.AppendUint64(b, e.Boot)
	b = binary.BigEndian.AppendUint64(b, e.Sequence)
	b = binary.BigEndian.AppendUint32(b, uint32(len(subject)))
	b = append(b, subject...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Sender)))
	b = append(b, e.Sender...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(e.Payload)))
	h.Write(b)
	h.Write(e.Payload)
	return h.Sum(stack[:0])
}

// seal makes the bytes that travel on the subject.
func (r *keyring) seal(subject string, e *busv1.Envelope, now time.Time) ([]byte, error) {
	key := r.sign(now)
	if key == nil {
		return nil, ErrNoKey
	}
	e.KeyId = key.Id
	e.Mac = mac(key.Key, subject, e)
	return proto.Marshal(e)
}

// open returns the envelope when a member sealed it for this subject. Whether it
// came before is for replays to say.
func (r *keyring) open(subject string, data []byte) (*busv1.Envelope, error) {
	e := &busv1.Envelope{}
	if len(data) > MaxPayload+1024 || proto.Unmarshal(data, e) != nil ||
		e.Sender == "" || len(e.Sender) > maxName || e.Sequence == 0 || e.Boot == 0 {
		return nil, errMalformed
	}
	key := r.find(e.KeyId)
	if key == nil {
		return nil, errUnknownKey
	}
	if !hmac.Equal(e.Mac, mac(key.Key, subject, e)) {
		return nil, errForged
	}
	return e, nil
}
