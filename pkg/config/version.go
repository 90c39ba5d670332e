package config

import (
	"cmp"
	"fmt"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Version is a point in the cluster's one sequence. Revision is the store's
// revision of the commit; Epoch changes when the store is restored from backup,
// since revisions can then go backwards. The zero Version is before all others.
type Version struct {
	Epoch    uint64
	Revision int64
}

// VersionOf reads a message; nil is the zero Version.
func VersionOf(v *controlv1.Version) Version {
	return Version{Epoch: v.GetEpoch(), Revision: v.GetRevision()}
}

// Proto returns the message; nil for the zero Version.
func (v Version) Proto() *controlv1.Version {
	if v.IsZero() {
		return nil
	}
	return &controlv1.Version{Epoch: v.Epoch, Revision: v.Revision}
}

// Compare orders versions: a higher epoch is newer whatever its revision.
func (v Version) Compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Epoch, w.Epoch), cmp.Compare(v.Revision, w.Revision))
}

// IsZero reports whether v is the zero Version.
func (v Version) IsZero() bool { return v == Version{} }

// String returns "42" in the first epoch and "2.42" in the second.
func (v Version) String() string {
	if v.Epoch <= 1 {
		return fmt.Sprint(v.Revision)
	}
	return fmt.Sprintf("%d.%d", v.Epoch, v.Revision)
}
