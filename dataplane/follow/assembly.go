package follow

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// errBroken says that chunks do not make up an update. The stream or the file
// that they came from is of no more use; nothing of them has been applied.
var errBroken = errors.New("update is broken")

// assembly is an update in the making: nothing of it counts before the last
// chunk. The zero assembly awaits chunk 0.
type assembly struct {
	version, from config.Version
	next          uint32
	bytes         int

	upserts     []*configv1.Resource
	deletes     []config.Key
	credentials []*controlv1.CredentialRecords
	digest      [32]byte
	signature   []byte
	// unread is why some of its revocations could not be read; nil when all could.
	unread error
}

func (a *assembly) full() bool { return a.from.IsZero() }

// add takes the next chunk and reports whether it was the last. Errors are
// errBroken.
func (a *assembly) add(u *controlv1.Update, maxBytes int) (done bool, err error) {
	version, from := config.VersionOf(u.GetVersion()), config.VersionOf(u.GetFrom())
	if a.next == 0 {
		a.version, a.from = version, from
	}
	switch {
	case version.IsZero() || version.Revision <= 0:
		return false, fmt.Errorf("%w: no version", errBroken)
	case u.GetChunk() != a.next:
		return false, fmt.Errorf("%w: chunk %d where %d was due", errBroken, u.GetChunk(), a.next)
	case version != a.version || from != a.from:
		return false, fmt.Errorf("%w: a chunk of %v..%v among those of %v..%v", errBroken, from, version, a.from, a.version)
	case u.GetFrom() != nil && from.IsZero():
		return false, fmt.Errorf("%w: from no version", errBroken)
	}
	if a.bytes += proto.Size(u); a.bytes > maxBytes {
		return false, fmt.Errorf("%w: more than %d bytes", errBroken, maxBytes)
	}
	a.next++
	a.upserts = append(a.upserts, u.GetUpserts()...)
	for _, k := range u.GetDeletes() {
		a.deletes = append(a.deletes, config.KeyOfProto(k))
	}
	if u.GetCredentials() != nil {
		a.credentials = append(a.credentials, u.GetCredentials())
	}
	if !u.GetLast() {
		return false, nil
	}
	if len(u.GetDigest()) != len(a.digest) {
		return false, fmt.Errorf("%w: digest of %d bytes", errBroken, len(u.GetDigest()))
	}
	copy(a.digest[:], u.GetDigest())
	a.signature = u.GetSignature()
	return true, nil
}

// laneOnly reports whether an update moves the deny lane alone: it closes, and
// claims no state.
func laneOnly(u *controlv1.Update) bool { return u.GetLast() && len(u.GetDigest()) == 0 }
