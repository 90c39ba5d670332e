package credential

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/pkg/revocation"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

type naive map[[32]byte]Credential

func (n naive) digest() (d [32]byte) {
	for _, c := range n {
		x := c.Digest()
		for i := range d {
			d[i] ^= x[i]
		}
	}
	return d
}

func collect(s *Set) naive {
	n := naive{}
	for c := range s.All() {
		n[c.SHA256] = c
	}
	return n
}

func check(t interface {
	Helper()
	Fatalf(string, ...any)
}, s *Set, want naive) {
	t.Helper()
	if s.Len() != len(want) || !maps.Equal(collect(s), want) || s.Digest() != want.digest() {
		t.Fatalf("the set holds %d credentials, want %d, or others", s.Len(), len(want))
	}
	for sha, c := range want {
		if got, ok := s.Lookup(&sha); !ok || got != c {
			t.Fatalf("Lookup = %+v %v, want %+v", got, ok, c)
		}
	}
	if _, ok := s.Lookup(&[32]byte{1}); ok {
		t.Fatalf("Lookup found what was never put")
	}
}

// A naive map is the oracle, for single changes and for messages.
func TestSetEqualsMap(t *testing.T) {
	any := anyCredential(30)
	rapid.Check(t, func(t *rapid.T) {
		s, want := NewSet(), naive{}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				c := any.Draw(t, "put")
				s.Put(c)
				want[c.SHA256] = c
			case 1:
				sha := any.Draw(t, "delete").SHA256
				_, there := want[sha]
				if got := s.Delete(sha); got != there {
					t.Fatalf("Delete = %v, want %v", got, there)
				}
				delete(want, sha)
			case 2:
				ups := rapid.SliceOfN(any, 0, 10).Draw(t, "upserts")
				var dels [][32]byte
				for _, c := range rapid.SliceOfN(any, 0, 5).Draw(t, "deletes") {
					dels = append(dels, c.SHA256)
				}
				if err := s.Apply(over(t, Pack(ups, dels))); err != nil {
					t.Fatalf("Apply: %v", err)
				}
				for _, sha := range dels {
					delete(want, sha)
				}
				for _, c := range ups {
					want[c.SHA256] = c
				}
			case 3:
				other := NewSet()
				for r := range s.Chunks(rapid.IntRange(1, 2000).Draw(t, "bytes")) {
					if err := other.Apply(over(t, r)); err != nil {
						t.Fatalf("Apply: %v", err)
					}
				}
				check(t, other, want)
				s.Replace(other)
			}
		}
		check(t, s, want)
	})
}

// over sends a message over the wire.
func over(t *rapid.T, r *controlv1.CredentialRecords) *controlv1.CredentialRecords {
	b, err := proto.Marshal(r)
	out := &controlv1.CredentialRecords{}
	if err == nil {
		err = proto.Unmarshal(b, out)
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

func TestChunksKeepTheirSize(t *testing.T) {
	s := NewSet()
	for i := range 500 {
		s.Put(numbered(i))
	}
	n := 0
	for r := range s.Chunks(4096) {
		n++
		if size := proto.Size(r); size > 4096 {
			t.Fatalf("a chunk of %d bytes", size)
		}
	}
	if n < 500*Size/4096 || n > 40 {
		t.Fatalf("%d chunks", n)
	}
	for range s.Chunks(1) {
		break // a reader may stop
	}
	for range NewSet().Chunks(1) {
		t.Fatal("a chunk of an empty set")
	}
}

func numbered(i int) Credential {
	return Credential{
		SHA256: sha256.Sum256(fmt.Append(nil, i)), ID: revocation.CredentialKey(sha256.Sum256(fmt.Append(nil, i))),
		Workspace: "shop", Application: fmt.Sprint("app-", i), Expires: int64(i),
	}
}

// A message with one bad record changes nothing.
func TestApplyIsWhole(t *testing.T) {
	good := Pack([]Credential{numbered(1), numbered(2)}, [][32]byte{numbered(0).SHA256})
	tests := map[string]func(*controlv1.CredentialRecords){
		"cut record":         func(r *controlv1.CredentialRecords) { r.Upserts = r.Upserts[:len(r.Upserts)-1] },
		"cut delete":         func(r *controlv1.CredentialRecords) { r.Deletes = r.Deletes[1:] },
		"no workspace":       func(r *controlv1.CredentialRecords) { clear(r.Upserts[Size+48 : Size+52]) },
		"no application":     func(r *controlv1.CredentialRecords) { clear(r.Upserts[Size+52 : Size+56]) },
		"workspace beyond":   func(r *controlv1.CredentialRecords) { r.Upserts[Size+48] = 4 },
		"application beyond": func(r *controlv1.CredentialRecords) { r.Upserts[Size+55] = 0xff },
		"scopes beyond":      func(r *controlv1.CredentialRecords) { r.Upserts[Size+56] = 9 },
		"no strings":         func(r *controlv1.CredentialRecords) { r.Strings = nil },
		"empty string":       func(r *controlv1.CredentialRecords) { r.Strings = append(r.Strings, "") },
		"bad scopes": func(r *controlv1.CredentialRecords) {
			r.Strings = append(r.Strings, "a  b")
			r.Upserts[Size+56] = byte(len(r.Strings))
		},
		"id of another kind": func(r *controlv1.CredentialRecords) { r.Upserts[Size+47] ^= 0x0e },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			s := NewSet()
			s.Put(numbered(0))
			r := proto.CloneOf(good)
			spoil(r)
			if err := s.Apply(r); !errors.Is(err, ErrInvalid) {
				t.Fatalf("Apply: %v", err)
			}
			if _, _, err := Unpack(r); !errors.Is(err, ErrInvalid) {
				t.Fatalf("Unpack: %v", err)
			}
			check(t, s, naive{numbered(0).SHA256: numbered(0)})
		})
	}
	if err := NewSet().Apply(nil); err != nil {
		t.Fatalf("nothing to apply: %v", err)
	}
}

func FuzzApply(f *testing.F) {
	r := Pack([]Credential{numbered(1), numbered(2)}, [][32]byte{numbered(0).SHA256})
	f.Add(r.Upserts, r.Deletes, "shop\napp-1\napp-2")
	f.Add([]byte{}, []byte{}, "")
	f.Fuzz(func(t *testing.T, upserts, deletes []byte, text string) {
		r := &controlv1.CredentialRecords{Upserts: upserts, Deletes: deletes}
		for s := range bytes.SplitSeq([]byte(text), []byte{'\n'}) {
			r.Strings = append(r.Strings, string(s))
		}
		s, want := NewSet(), naive{}
		for i := range 3 {
			s.Put(numbered(i))
			want[numbered(i).SHA256] = numbered(i)
		}
		if err := s.Apply(r); err == nil {
			ups, dels, err := Unpack(r)
			if err != nil {
				t.Fatal(err)
			}
			for sha := range dels {
				delete(want, sha)
			}
			for c := range ups {
				want[c.SHA256] = c
			}
		}
		check(t, s, want)
	})
}

// Names that nobody uses any more go, while readers go on reading.
func TestNamesDoNotPileUp(t *testing.T) {
	s := NewSet()
	keep := numbered(-1)
	keep.Expires = 7
	s.Put(keep)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if c, ok := s.Lookup(&keep.SHA256); !ok || c != keep {
				t.Errorf("Lookup = %+v %v", c, ok)
				return
			}
		}
	})
	for i := range 6000 {
		c := numbered(1)
		c.Application = fmt.Sprint("app-", i)
		s.Put(c)
	}
	close(stop)
	readers.Wait()
	if n := len(*s.live.Load().names.list.Load()); n > 3000 {
		t.Fatalf("%d names for two credentials", n)
	}
	last := numbered(1)
	last.Application = "app-5999"
	check(t, s, naive{keep.SHA256: keep, last.SHA256: last})
}

// A reader sees a credential as it was or as it is, and never none or a mixture.
func TestSetConcurrent(t *testing.T) {
	s := NewSet()
	version := func(i, v int) Credential {
		c := numbered(i)
		c.Application, c.Scopes, c.Expires = fmt.Sprint("app-", v), fmt.Sprint("scope-", v), int64(v)
		return c
	}
	const total = 200
	for i := range total {
		s.Put(version(i, 1))
	}
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for i := 0; ; i = (i + 1) % total {
				select {
				case <-stop:
					return
				default:
				}
				sha := version(i, 0).SHA256
				c, ok := s.Lookup(&sha)
				if !ok || c != version(i, int(c.Expires)) {
					t.Errorf("Lookup = %+v %v", c, ok)
					return
				}
			}
		})
	}
	for w := range 2 {
		writers.Go(func() {
			for v := 1; v <= 5; v++ {
				for i := w; i < total; i += 2 {
					s.Put(version(i, v))
					extra := version(total+v*total+i, v)
					if err := s.Apply(Pack([]Credential{extra}, nil)); err != nil {
						t.Error(err)
					}
					s.Delete(extra.SHA256)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	want := naive{}
	for i := range total {
		want[version(i, 5).SHA256] = version(i, 5)
	}
	check(t, s, want)
}

func TestLookupDoesNotAllocate(t *testing.T) {
	s := NewSet()
	s.Put(numbered(1))
	hit, miss := numbered(1).SHA256, numbered(2).SHA256
	if n := testing.AllocsPerRun(100, func() {
		s.Lookup(&hit)
		s.Lookup(&miss)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestPutRefusesNonsense(t *testing.T) {
	for name, c := range map[string]Credential{
		"zero":   {},
		"expiry": func() Credential { c := numbered(1); c.Expires = -1; return c }(),
		"scopes": func() Credential { c := numbered(1); c.Scopes = " "; return c }(),
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: kept", name)
				}
			}()
			NewSet().Put(c)
		}()
	}
}
