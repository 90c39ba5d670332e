package revocation

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	jti        = controlv1.RevocationKind_REVOCATION_KIND_JTI
	session    = controlv1.RevocationKind_REVOCATION_KIND_SESSION
	subject    = controlv1.RevocationKind_REVOCATION_KIND_SUBJECT
	client     = controlv1.RevocationKind_REVOCATION_KIND_CLIENT
	issuer     = controlv1.RevocationKind_REVOCATION_KIND_ISSUER
	credential = controlv1.RevocationKind_REVOCATION_KIND_CREDENTIAL
	none       = controlv1.RevocationKind_REVOCATION_KIND_UNSPECIFIED
)

func TestRevokedByKind(t *testing.T) {
	full := Subject{
		JTI: "t1", Session: "s1", Subject: "alice", Client: "app", Issuer: "https://i.example",
		Credential: CredentialKey(sha256.Sum256([]byte("key1"))), IssuedAt: 100,
	}
	tests := []struct {
		name    string
		entry   Entry
		subject Subject
		want    controlv1.RevocationKind
	}{
		{"jti", Entry{Key: KeyOf(jti, "", "t1"), Before: Always}, full, jti},
		{"jti of the issuer", Entry{Key: KeyOf(jti, "https://i.example", "t1"), Before: Always}, full, jti},
		{"jti of another issuer", Entry{Key: KeyOf(jti, "https://j.example", "t1"), Before: Always}, full, none},
		{"session", Entry{Key: KeyOf(session, "", "s1"), Before: Always}, full, session},
		{"subject", Entry{Key: KeyOf(subject, "", "alice"), Before: Always}, full, subject},
		{"client", Entry{Key: KeyOf(client, "", "app"), Before: Always}, full, client},
		{"issuer", Entry{Key: KeyOf(issuer, "", "https://i.example"), Before: Always}, full, issuer},
		{"issuer, the other way", Entry{Key: KeyOf(issuer, "https://i.example", ""), Before: Always}, full, issuer},
		{"issuer, both ways", Entry{Key: KeyOf(issuer, "https://i.example", "https://i.example"), Before: Always}, full, issuer},
		{"credential", Entry{Key: CredentialKey(sha256.Sum256([]byte("key1"))), Before: Always}, full, credential},
		{"another credential", Entry{Key: CredentialKey(sha256.Sum256([]byte("key2"))), Before: Always}, full, none},
		{"value of another kind", Entry{Key: KeyOf(subject, "", "app"), Before: Always}, full, none},
		{"issued before", Entry{Key: KeyOf(subject, "", "alice"), Before: 101}, full, subject},
		{"issued at", Entry{Key: KeyOf(subject, "", "alice"), Before: 100}, full, subject},
		{"issued after", Entry{Key: KeyOf(subject, "", "alice"), Before: 99}, full, none},
		{"without iat", Entry{Key: KeyOf(subject, "", "alice"), Before: 1}, Subject{Subject: "alice"}, subject},
		{"negative watermark", Entry{Key: KeyOf(subject, "", "alice"), Before: -5}, full, none},
		{"iat in 2200", Entry{Key: KeyOf(subject, "", "alice"), Before: Always},
			Subject{Subject: "alice", IssuedAt: 7258118400}, subject},
		{"nobody", Entry{Key: KeyOf(subject, "", ""), Before: Always}, Subject{}, none},
		{"long value", Entry{Key: KeyOf(subject, "", strings.Repeat("x", 5000)), Before: Always},
			Subject{Subject: strings.Repeat("x", 5000)}, subject},
		{"moved boundary", Entry{Key: KeyOf(jti, "a", "bc"), Before: Always}, Subject{Issuer: "ab", JTI: "c"}, none},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSet()
			s.Add(Entry{Key: KeyOf(jti, "", "unrelated"), Before: Always}, tt.entry)
			kind, revoked := s.Revoked(&tt.subject)
			if kind != tt.want || revoked != (tt.want != none) {
				t.Fatalf("Revoked = %v %v, want %v", kind, revoked, tt.want)
			}
		})
	}
}

// naive is the set as one would write it first.
type naive map[Key]Entry

func (n naive) add(e Entry) {
	e.Kind = e.Key.Kind()
	if e.Expires == 0 {
		e.Expires = math.MaxInt64
	}
	if old, ok := n[e.Key]; ok {
		e.Before, e.Expires = max(old.Before, e.Before), max(old.Expires, e.Expires)
	}
	n[e.Key] = e
}

func (n naive) revoked(t *Subject) bool {
	hit := func(k Key) bool { e, ok := n[k]; return ok && t.IssuedAt <= e.Before }
	for kind, v := range map[controlv1.RevocationKind]string{
		jti: t.JTI, session: t.Session, subject: t.Subject, client: t.Client, issuer: t.Issuer,
	} {
		if v != "" && (hit(KeyOf(kind, "", v)) || t.Issuer != "" && hit(KeyOf(kind, t.Issuer, v))) {
			return true
		}
	}
	return t.Credential != Key{} && hit(t.Credential)
}

func TestSetEqualsMap(t *testing.T) {
	name := rapid.SampledFrom([]string{"", "a", "b", "c"})
	seconds := rapid.Int64Range(1, 5)
	key := rapid.Custom(func(t *rapid.T) Key {
		return KeyOf(rapid.SampledFrom([]controlv1.RevocationKind{jti, session, subject, client, issuer, credential}).Draw(t, "kind"),
			name.Draw(t, "issuer"), name.Filter(func(s string) bool { return s != "" }).Draw(t, "value"))
	})
	rapid.Check(t, func(t *rapid.T) {
		s, want := NewSet(), naive{}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0, 1:
				e := Entry{Key: key.Draw(t, "key"), Before: seconds.Draw(t, "before")}
				if rapid.Bool().Draw(t, "always") {
					e.Before = Always
				}
				if rapid.Bool().Draw(t, "expires") {
					e.Expires = seconds.Draw(t, "at")
				}
				s.Add(e)
				want.add(e)
			case 2:
				now := seconds.Draw(t, "now")
				before := len(want)
				maps.DeleteFunc(want, func(_ Key, e Entry) bool { return e.Expires < now })
				if got := s.Expire(now + grace); got != before-len(want) {
					t.Fatalf("Expire(%d) = %d, want %d", now, got, before-len(want))
				}
			case 3:
				x := Subject{
					JTI: name.Draw(t, "jti"), Session: name.Draw(t, "sid"), Subject: name.Draw(t, "sub"),
					Client: name.Draw(t, "client"), Issuer: name.Draw(t, "iss"), IssuedAt: seconds.Draw(t, "iat"),
				}
				if rapid.Bool().Draw(t, "credential") {
					x.Credential = KeyOf(credential, "", name.Draw(t, "id"))
				}
				if _, got := s.Revoked(&x); got != want.revoked(&x) {
					t.Fatalf("Revoked(%+v) = %v", x, got)
				}
			}
		}
		got := naive{}
		for e := range s.All() {
			got.add(e)
		}
		if diff := cmp.Diff(want, got); diff != "" || s.Len() != len(want) {
			t.Fatalf("%d entries: %s", s.Len(), diff)
		}
	})
}

// Whatever comes after, in whatever order, what was revoked stays so.
func TestNeverUnrevokes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := NewSet()
		k := KeyOf(subject, "", "alice")
		var latest int64
		for _, b := range rapid.SliceOf(rapid.Int64Range(1, 1000)).Draw(t, "befores") {
			s.Add(Entry{Key: k, Before: b, Expires: rapid.Int64Range(0, 1<<33).Draw(t, "expires")})
			latest = max(latest, b)
			if _, ok := s.Revoked(&Subject{Subject: "alice", IssuedAt: latest}); !ok {
				t.Fatalf("a token of %d is not revoked any more", latest)
			}
		}
	})
}

// An entry that was added before is hit at every moment, while others are added,
// raised and expire.
func TestSetConcurrent(t *testing.T) {
	s := NewSet()
	const total = 2000
	var added atomic.Int64
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	writers.Go(func() {
		for i := range total {
			s.Add(Entry{Key: KeyOf(jti, "", fmt.Sprint(i)), Before: Always},
				Entry{Key: KeyOf(session, "", fmt.Sprint(i)), Before: Always, Expires: int64(i + 1)})
			added.Store(int64(i + 1))
		}
	})
	writers.Go(func() {
		for i := range total {
			s.Add(Entry{Key: KeyOf(subject, "", "alice"), Before: int64(i + 1)})
			if i%100 == 0 {
				s.Expire(int64(i) + grace)
			}
		}
	})
	for range 2 {
		readers.Go(func() {
			for i := int64(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				n := added.Load()
				if n == 0 {
					continue
				}
				if _, ok := s.Revoked(&Subject{JTI: fmt.Sprint(i % n)}); !ok {
					t.Errorf("entry %d of %d is not hit", i%n, n)
					return
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	s.Expire(total + 1 + grace)
	if s.Len() != total+1 {
		t.Fatalf("%d entries, want %d", s.Len(), total+1)
	}
}

func TestRevokedDoesNotAllocate(t *testing.T) {
	s := NewSet()
	for _, kind := range []controlv1.RevocationKind{jti, session, subject, client, issuer, credential} {
		s.Add(Entry{Key: KeyOf(kind, "", "x")}, Entry{Key: KeyOf(kind, "i", "x")})
	}
	x := &Subject{JTI: "0b6ff7b0-93b6-4b7c-8a7e-7e5f2c7c0c55", Session: "session", Subject: "alice@example.com",
		Client: "client", Issuer: "https://issuer.example/realms/shop", Credential: CredentialKey([32]byte{1}), IssuedAt: 1}
	if n := testing.AllocsPerRun(100, func() { s.Revoked(x) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestEntryRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := Entry{
			Key:     KeyOf(rapid.SampledFrom([]controlv1.RevocationKind{jti, issuer, credential}).Draw(t, "kind"), "i", "v"),
			Before:  rapid.Int64Range(0, 1<<32).Draw(t, "before"),
			Expires: rapid.Int64Range(0, 1<<32).Draw(t, "expires"),
		}
		e.Kind = e.Key.Kind()
		if rapid.Bool().Draw(t, "always") {
			e.Before = Always
		}
		got, err := EntryOf(e.Proto())
		if err != nil || got != e {
			t.Fatalf("%+v %v, want %+v", got, err, e)
		}
		if diff := cmp.Diff(e.Proto(), got.Proto(), protocmp.Transform()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestEntryOfRefuses(t *testing.T) {
	k := KeyOf(jti, "", "x")
	odd := k
	odd[15] |= 0x0e
	for name, r := range map[string]*controlv1.Revocation{
		"nil":            nil,
		"empty":          {},
		"short key":      {Kind: jti, Key: k[:15]},
		"long key":       {Kind: jti, Key: append(k[:], 0)},
		"other kind":     {Kind: subject, Key: k[:]},
		"unknown kind":   {Kind: 7, Key: odd[:]},
		"no kind":        {Key: make([]byte, 16)},
		"before invalid": {Kind: jti, Key: k[:], RevokedBefore: &timestamppb.Timestamp{Seconds: math.MaxInt64}},
		"expiry invalid": {Kind: jti, Key: k[:], ExpiresAt: &timestamppb.Timestamp{Nanos: -1}},
	} {
		if _, err := EntryOf(r); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A fraction of a second never shortens an entry's life.
	e, err := EntryOf(&controlv1.Revocation{Kind: jti, Key: k[:], ExpiresAt: &timestamppb.Timestamp{Seconds: 5, Nanos: 1}})
	if err != nil || e.Expires != 6 || e.Before != Always {
		t.Fatalf("%+v %v", e, err)
	}
}

func FuzzEntryOf(f *testing.F) {
	k := KeyOf(jti, "", "x")
	f.Add(int32(1), k[:], int64(1), int64(2), true, true)
	f.Fuzz(func(t *testing.T, kind int32, key []byte, before, expires int64, hasBefore, hasExpires bool) {
		r := &controlv1.Revocation{Kind: controlv1.RevocationKind(kind), Key: key}
		if hasBefore {
			r.RevokedBefore = &timestamppb.Timestamp{Seconds: before}
		}
		if hasExpires {
			r.ExpiresAt = &timestamppb.Timestamp{Seconds: expires}
		}
		e, err := EntryOf(r)
		if err != nil {
			return
		}
		s := NewSet()
		s.Add(e)
		if !s.holds(e.Key, min(e.Before, 0)) {
			t.Fatalf("%+v revokes nothing", e)
		}
		if e.Expires == 0 && s.Expire(math.MaxInt64) != 0 {
			t.Fatalf("%+v expired", e)
		}
	})
}
