package balance

import (
	"cmp"
	"math/bits"
	"slices"
	"sort"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// The size of a ring: the heaviest candidate has pointsOfHeaviest to twice as
// many points, the others in proportion but at least one, and all together at
// most maxPoints (or one each). With 128 points the shares of equal candidates
// deviate by 9 %.
const (
	pointsOfHeaviest = 128
	maxPoints        = 1 << 17
)

// ring is a consistent-hash ring (Karger et al., 1997; the points are ketama's,
// with another hash): a key belongs to the candidate of the first point at or
// after its hash, cyclically. It is immutable.
type ring struct {
	hashes []uint64
	owners []int32
}

// newRing places all candidates. How many points one has depends on its own
// weight and on the scale, which is a power of two and so seldom moves when
// candidates come and go: then only the keys of those move.
func newRing(candidates []Candidate) *ring {
	heaviest := uint32(0)
	for i := range candidates {
		heaviest = max(heaviest, candidates[i].Weight)
	}
	if heaviest == 0 {
		return &ring{}
	}
	shift := bits.Len32(heaviest) - 1
	count := func(weight uint32) int {
		if weight == 0 {
			return 0
		}
		return max(1, int(uint64(weight)*pointsOfHeaviest>>shift))
	}
	total := 0
	for {
		total = 0
		for i := range candidates {
			total += count(candidates[i].Weight)
		}
		if total <= maxPoints || total <= len(candidates) {
			break
		}
		shift++
	}
	type point struct {
		hash  uint64
		owner int32
	}
	points := make([]point, 0, total)
	var text []byte
	for i := range candidates {
		for n := range count(candidates[i].Weight) {
			text = strconv.AppendInt(append(append(text[:0], candidates[i].Key...), '#'), int64(n), 10)
			points = append(points, point{xxhash.Sum64(text), int32(i)})
		}
	}
	slices.SortFunc(points, func(a, b point) int {
		// Two points of one hash stand in the order of the keys, on every node.
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(candidates[a.owner].Key, candidates[b.owner].Key))
	})
	r := &ring{make([]uint64, len(points)), make([]int32, len(points))}
	for i, p := range points {
		r.hashes[i], r.owners[i] = p.hash, p.owner
	}
	return r
}

// among returns the ring of those candidates only.
func (r *ring) among(in []bool) *ring {
	kept := 0
	for _, owner := range r.owners {
		if in[owner] {
			kept++
		}
	}
	if kept == len(r.owners) {
		return r
	}
	out := &ring{make([]uint64, 0, kept), make([]int32, 0, kept)}
	for i, owner := range r.owners {
		if in[owner] {
			out.hashes, out.owners = append(out.hashes, r.hashes[i]), append(out.owners, owner)
		}
	}
	return out
}

// find returns the place of the first point at or after the hash.
func (r *ring) find(hash uint64) int {
	at := sort.Search(len(r.hashes), func(i int) bool { return r.hashes[i] >= hash })
	if at == len(r.hashes) {
		return 0
	}
	return at
}
