package token

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"
)

// Defaults of a CacheConfig.
const (
	DefaultCacheEntries = 1 << 16
	DefaultCacheBytes   = 64 << 20
)

// CacheConfig bounds the memory of a Cache, for each issuer by itself: one that
// signs many tokens does not push out another's.
type CacheConfig struct {
	// Entries is the number of tokens kept; it is rounded down to a power of two.
	// 0 means DefaultCacheEntries.
	Entries int
	// Bytes bounds the estimated size of what is kept; 0 means DefaultCacheBytes.
	Bytes int
}

// Cache remembers tokens whose signature has been verified. It holds verdicts
// about signatures and parsed claims, never decisions. It lives longer than any
// compiled issuer and is safe for concurrent use.
type Cache struct {
	config CacheConfig

	mu      sync.Mutex
	issuers map[string]*issuerCache
}

// NewCache makes an empty cache.
func NewCache(config CacheConfig) *Cache {
	if config.Entries <= 0 {
		config.Entries = DefaultCacheEntries
	}
	if config.Bytes <= 0 {
		config.Bytes = DefaultCacheBytes
	}
	return &Cache{config: config, issuers: map[string]*issuerCache{}}
}

// of returns the part of one issuer; nil, which holds nothing, of a nil cache.
func (c *Cache) of(name string) *issuerCache {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	part := c.issuers[name]
	if part == nil {
		part = &issuerCache{config: c.config}
		c.issuers[name] = part
	}
	return part
}

// Forget drops the part of an issuer that is not configured any more.
func (c *Cache) Forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.issuers, name)
}

// Len and Bytes return what is kept, over all issuers.
func (c *Cache) Len() int   { return c.total(func(p *issuerCache) int { return p.entries }) }
func (c *Cache) Bytes() int { return c.total(func(p *issuerCache) int { return p.bytes }) }

func (c *Cache) total(of func(*issuerCache) int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, p := range c.issuers {
		p.mu.Lock()
		n += of(p)
		p.mu.Unlock()
	}
	return n
}

// entryOverhead is what an entry holds besides its claims: itself, its Token, the
// string and slice headers of the latter. Bytes.
const entryOverhead = 512

// entry is immutable but for used.
type entry struct {
	sum     [sha256.Size]byte
	profile [sha256.Size]byte
	key     [sha256.Size]byte
	token   *Token
	size    int
	expires int64
	used    atomic.Bool
}

// ways is how many entries share a set. A token can stand in any place of the set
// that its hash chooses.
const ways = 8

type set [ways]atomic.Pointer[entry]

// issuerCache is a set-associative table: reads touch one set and take no lock.
// Its slots bound the entries, a sweeping hand (second chance) the bytes.
type issuerCache struct {
	config CacheConfig
	table  atomic.Pointer[[]set]

	// Writers.
	mu      sync.Mutex
	entries int
	bytes   int
	hand    int
}

// get returns the verdict on the token with the digest, reached under the
// profile; nil when there is none. It allocates nothing.
func (c *issuerCache) get(sum, profile *[sha256.Size]byte) *entry {
	if c == nil {
		return nil
	}
	table := c.table.Load()
	if table == nil {
		return nil
	}
	s := setOf(*table, sum)
	for i := range s {
		if e := s[i].Load(); e != nil && e.sum == *sum && e.profile == *profile {
			if !e.used.Load() {
				e.used.Store(true)
			}
			return e
		}
	}
	return nil
}

// put keeps a verdict. It may push out others, expired ones first.
func (c *issuerCache) put(e *entry, now int64) {
	if c == nil || e.size > c.config.Bytes {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	table := c.table.Load()
	if table == nil {
		fresh := make([]set, sets(c.config.Entries))
		table = &fresh
		c.table.Store(table)
	}
	c.replace(c.victim(setOf(*table, &e.sum), e, now), e)
	for c.bytes > c.config.Bytes {
		c.sweep(*table, e, now)
	}
}

// victim chooses the place for an entry: its own earlier one, a free or expired
// one, one not used since the last time, else one by its hash.
func (c *issuerCache) victim(s *set, e *entry, now int64) *atomic.Pointer[entry] {
	var free, unused *atomic.Pointer[entry]
	for i := range s {
		switch old := s[i].Load(); {
		case old != nil && old.sum == e.sum:
			return &s[i]
		case old == nil || old.expires <= now:
			free = &s[i]
		case !old.used.Load():
			unused = &s[i]
		default:
			old.used.Store(false)
		}
	}
	if free != nil {
		return free
	}
	if unused != nil {
		return unused
	}
	return &s[int(e.sum[8])%ways]
}

// sweep moves the hand over one set and drops from it what is expired or was not
// used since the hand was last here; never the entry that is being put.
func (c *issuerCache) sweep(table []set, keep *entry, now int64) {
	s := &table[c.hand%len(table)]
	c.hand++
	for i := range s {
		e := s[i].Load()
		if e == nil || e == keep || c.bytes <= c.config.Bytes {
			continue
		}
		if e.expires > now && e.used.Load() {
			e.used.Store(false)
			continue
		}
		c.replace(&s[i], nil)
	}
}

func (c *issuerCache) replace(slot *atomic.Pointer[entry], e *entry) {
	if old := slot.Load(); old != nil {
		c.entries--
		c.bytes -= old.size
	}
	if e != nil {
		c.entries++
		c.bytes += e.size
	}
	slot.Store(e)
}

func setOf(table []set, sum *[sha256.Size]byte) *set {
	return &table[binary.LittleEndian.Uint64(sum[:8])&uint64(len(table)-1)]
}

// sets returns the number of sets for a number of entries: a power of two.
func sets(entries int) int {
	return 1 << (bits.Len(uint(max(entries/ways, 1))) - 1)
}
