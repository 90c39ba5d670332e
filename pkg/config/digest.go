package config

import (
	"crypto/sha256"
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Digest returns the SHA-256 of the resource: its key, each part preceded by its
// length, and its deterministic encoding. The digest of a set is the XOR of its
// members', so that it can follow a change without the rest of the set.
//
// Deterministic protobuf is stable within one release of the library, not for
// ever: two releases that encode differently would disagree, and resynchronise
// in vain. TestDigestIsStable holds the encoding still.
func Digest(r *configv1.Resource) [32]byte {
	var h hasher
	digest, _ := h.digest(r)
	return digest
}

// hasher makes digests, with one buffer for all.
type hasher struct{ buf []byte }

// digest returns the digest of a resource, and the size of its encoding.
func (h *hasher) digest(r *configv1.Resource) (sum [32]byte, size int) {
	if !normalized(r) {
		r = normalize(r)
	}
	key := KeyOf(r)
	if h.buf == nil {
		h.buf = make([]byte, 0, 1024)
	}
	buf := h.buf[:0]
	for _, part := range [...]string{key.Kind, key.Workspace, key.Name} {
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(part)))
		buf = append(buf, part...)
	}
	prefix := len(buf)
	buf, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(buf, r)
	size = len(buf) - prefix
	if err != nil {
		// Only a string that is not UTF-8 fails; Check refuses it, and until then
		// its digest need only differ from all others'.
		buf, size = append(buf, err.Error()...), proto.Size(r)
	}
	h.buf = buf
	return sha256.Sum256(buf), size
}

func xor(a *[32]byte, b [32]byte) {
	for i := range a {
		a[i] ^= b[i]
	}
}
