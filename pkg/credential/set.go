package credential

import (
	"encoding/binary"
	"iter"
	"strings"
	"sync"
	"sync/atomic"

	"portcullis.dev/portcullis/pkg/internal/slab"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Set is the credentials that a node knows, by the SHA-256 of the key. Safe for
// concurrent use; Lookup takes no lock and does not allocate. A million take 74
// to 112 MB, without a pointer for the collector to follow; a change costs
// microseconds, however many there are.
type Set struct {
	live atomic.Pointer[content]

	// Owned by writers.
	mu     sync.Mutex
	digest [32]byte
}

// content is replaced whole when too many of its strings are dead.
type content struct {
	records *slab.Map
	names   names
}

// names gives strings numbers from 1 on. A number is never given to another
// string, so that a reader needs no lock.
type names struct {
	list atomic.Pointer[[]string] // list[0] is ""; grown by writers only

	// Owned by writers.
	numbers map[string]uint32
	uses    []uint32
	dead    int
}

func newContent() *content {
	c := &content{records: slab.New(4, 8)}
	c.names.numbers = map[string]uint32{"": 0}
	c.names.list.Store(&[]string{""})
	c.names.uses = []uint32{1}
	return c
}

// use returns the number of s and counts a use of it.
func (n *names) use(s string) uint32 {
	i, ok := n.numbers[s]
	if !ok {
		s = strings.Clone(s) // it may lie in a whole message's memory
		list := append(*n.list.Load(), s)
		n.list.Store(&list)
		i = uint32(len(list) - 1)
		n.numbers[s] = i
		n.uses = append(n.uses, 1)
		return i
	}
	if i != 0 {
		if n.uses[i] == 0 {
			n.dead--
		}
		n.uses[i]++
	}
	return i
}

func (n *names) drop(i uint32) {
	if i == 0 {
		return
	}
	if n.uses[i]--; n.uses[i] == 0 {
		n.dead++
	}
}

// NewSet makes an empty set.
func NewSet() *Set {
	s := &Set{}
	s.live.Store(newContent())
	return s
}

// Lookup returns the credential of a key, expired or not.
func (s *Set) Lookup(sha *[32]byte) (Credential, bool) {
	c := s.live.Load()
	key := keyWords(sha)
	slot, ok := c.records.Find(key[:])
	if !ok {
		return Credential{}, false
	}
	var rec [8]uint64
	for i := range rec {
		rec[i] = slot.Word(i)
	}
	// The names after the record: they hold every number that it can have.
	return fromWords(rec[:], *c.names.list.Load()), true
}

// Put adds a credential, in place of the one with the same key. It panics when
// the credential is not one that Of or Unpack returned and cannot be kept.
func (s *Set) Put(c Credential) {
	if err := c.check(); err != nil {
		panic("credential: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(c)
	s.compact()
}

// Delete removes the credential of a key and says whether there was one.
func (s *Set) Delete(sha [32]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.compact()
	return s.remove(sha)
}

// Apply applies the deletes of a message, then its upserts. The message is
// checked whole before anything changes; errors are ErrInvalid.
func (s *Set) Apply(r *controlv1.CredentialRecords) error {
	v, err := checkRecords(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for sha := range v.deletes() {
		s.remove(sha)
	}
	for c := range v.upserts() {
		s.put(c)
	}
	s.compact()
	return nil
}

// Replace takes over what another set holds, at once for every reader. The other
// set must not be used any more.
func (s *Set) Replace(other *Set) {
	other.mu.Lock()
	next, digest := other.live.Load(), other.digest
	other.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live.Store(next)
	s.digest = digest
}

func (s *Set) put(c Credential) {
	live := s.live.Load()
	key := keyWords(&c.SHA256)
	live.records.Update(key[:], func(old []uint64) []uint64 {
		if old != nil {
			s.forget(live, old)
		}
		s.fold(c.Digest())
		return append(key[:],
			binary.LittleEndian.Uint64(c.ID[:8]),
			binary.LittleEndian.Uint64(c.ID[8:]),
			uint64(live.names.use(c.Workspace))|uint64(live.names.use(c.Application))<<32,
			uint64(live.names.use(c.Scopes))|uint64(c.Expires)<<32)
	})
}

func (s *Set) remove(sha [32]byte) (found bool) {
	live := s.live.Load()
	key := keyWords(&sha)
	live.records.Update(key[:], func(old []uint64) []uint64 {
		if old != nil {
			s.forget(live, old)
			found = true
		}
		return nil
	})
	return found
}

// forget takes a record out of the digest and the counts.
func (s *Set) forget(live *content, rec []uint64) {
	s.fold(fromWords(rec, *live.names.list.Load()).Digest())
	live.names.drop(uint32(rec[6]))
	live.names.drop(uint32(rec[6] >> 32))
	live.names.drop(uint32(rec[7]))
}

func (s *Set) fold(digest [32]byte) {
	for i := range s.digest {
		s.digest[i] ^= digest[i]
	}
}

// compact copies everything when most of the strings are in no use any more, so
// that years of names that come and go do not pile up.
func (s *Set) compact() {
	old := s.live.Load()
	if old.names.dead < 1024 || old.names.dead < len(old.names.uses)/2 {
		return
	}
	fresh := &Set{}
	fresh.live.Store(newContent())
	list := *old.names.list.Load()
	for rec := range old.records.All {
		fresh.put(fromWords(rec, list))
	}
	s.live.Store(fresh.live.Load())
}

// All yields the credentials that are there throughout, in no order.
func (s *Set) All() iter.Seq[Credential] {
	return func(yield func(Credential) bool) {
		c := s.live.Load()
		for rec := range c.records.All {
			if !yield(fromWords(rec, *c.names.list.Load())) {
				return
			}
		}
	}
}

// Chunks yields the set as messages of about maxBytes each, at least one record
// to a message. A change that happens meanwhile may or may not be in them.
func (s *Set) Chunks(maxBytes int) iter.Seq[*controlv1.CredentialRecords] {
	return func(yield func(*controlv1.CredentialRecords) bool) {
		p := newPacker()
		for c := range s.All() {
			if p.size()+p.cost(c) > maxBytes && len(p.out.Upserts) > 0 {
				if !yield(p.out) {
					return
				}
				p = newPacker()
			}
			p.add(c)
		}
		if len(p.out.Upserts) > 0 {
			yield(p.out)
		}
	}
}

// Len returns the number of credentials.
func (s *Set) Len() int { return s.live.Load().records.Len() }

// Digest returns the XOR of the credentials' digests.
func (s *Set) Digest() [32]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.digest
}

// Bytes estimates how much memory the set takes.
func (s *Set) Bytes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.live.Load()
	n := c.records.Bytes()
	for _, name := range *c.names.list.Load() {
		n += len(name) + 64 // its header twice, its number, its share of the map
	}
	return n
}

func keyWords(sha *[32]byte) (w [4]uint64) {
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(sha[8*i:])
	}
	return w
}

func fromWords(rec []uint64, names []string) Credential {
	c := Credential{
		Workspace:   names[uint32(rec[6])],
		Application: names[rec[6]>>32],
		Scopes:      names[uint32(rec[7])],
		Expires:     int64(rec[7] >> 32),
	}
	for i := range 4 {
		binary.LittleEndian.PutUint64(c.SHA256[8*i:], rec[i])
	}
	binary.LittleEndian.PutUint64(c.ID[:8], rec[4])
	binary.LittleEndian.PutUint64(c.ID[8:], rec[5])
	return c
}
