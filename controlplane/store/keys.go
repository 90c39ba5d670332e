package store

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"portcullis.dev/portcullis/pkg/config"
)

// layout names etcd's keys. Under the prefix:
//
//	identity            the epoch and the cluster it began in
//	tip                 written by every commit: its mod revision is the newest commit's
//	head                written by every commit of the config lane
//	keys                written by every commit that changes credentials
//	deny                written by every commit of the deny lane
//	unfolded            the staged commit that is not yet copied to r/ and k/
//	r/KIND/WS/NAME      resources
//	k/WS/NAME           credentials
//	v/HEX               revocations, under leases
//	l/MINUTE            the lease of that expiry minute
//	s/ID/N              pieces of staged commits
//	b/ID                which staged ID was committed: the key of its record
//	trimmed             the newest record that was dropped
//	w/h/REV-ID          history: one record a commit
//	w/i/ROOM/NAME       items
//
// Only w/ is watched: a commit is one record there, whatever else it writes.
type layout struct{ prefix string }

func (l layout) identity() string { return l.prefix + "identity" }
func (l layout) tip() string      { return l.prefix + "tip" }
func (l layout) head() string     { return l.prefix + "head" }
func (l layout) keys() string     { return l.prefix + "keys" }
func (l layout) deny() string     { return l.prefix + "deny" }
func (l layout) unfolded() string { return l.prefix + "unfolded" }
func (l layout) trimmed() string  { return l.prefix + "trimmed" }

func (l layout) resources() string   { return l.prefix + "r/" }
func (l layout) credentials() string { return l.prefix + "k/" }
func (l layout) revocations() string { return l.prefix + "v/" }
func (l layout) watched() string     { return l.prefix + "w/" }
func (l layout) history() string     { return l.prefix + "w/h/" }
func (l layout) items() string       { return l.prefix + "w/i/" }
func (l layout) staged() string      { return l.prefix + "s/" }

func (l layout) room(room string) string    { return l.items() + room + "/" }
func (l layout) lease(minute int64) string  { return fmt.Sprintf("%sl/%d", l.prefix, minute) }
func (l layout) committed(id string) string { return l.prefix + "b/" + id }
func (l layout) pieces(id string) string    { return l.staged() + id + "/" }
func (l layout) piece(id string, n uint32) string {
	return fmt.Sprintf("%s%08d", l.pieces(id), n)
}

// record is where a commit's record goes. The revision that was current when the
// write was prepared makes keys sort roughly by age; the id makes them unique.
func (l layout) record(current int64, id string) string {
	return fmt.Sprintf("%s%019d-%s", l.history(), current, id)
}

func (l layout) resource(k config.Key) string {
	if k.Kind == kindCredential {
		return l.credentials() + k.Workspace + "/" + k.Name
	}
	return l.resources() + k.Kind + "/" + k.Workspace + "/" + k.Name
}

// keyOf is the inverse of resource.
func (l layout) keyOf(key string) (config.Key, error) {
	if rest, ok := strings.CutPrefix(key, l.credentials()); ok {
		if ws, name, ok := strings.Cut(rest, "/"); ok {
			return config.Key{Kind: kindCredential, Workspace: ws, Name: name}, nil
		}
	}
	if rest, ok := strings.CutPrefix(key, l.resources()); ok {
		if parts := strings.Split(rest, "/"); len(parts) == 3 {
			return config.Key{Kind: parts[0], Workspace: parts[1], Name: parts[2]}, nil
		}
	}
	return config.Key{}, fmt.Errorf("store: %q is no resource's key", key)
}

// newID returns a name that no other write has, on any replica.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return hex.EncodeToString(b[:])
}
