package credential

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestGenerate(t *testing.T) {
	form := regexp.MustCompile(`^pc_[0-9A-Za-z]{49}$`)
	seen := map[string]bool{}
	counts := map[rune]int{}
	for range 500 {
		key, sha, hint, err := Generate()
		if err != nil || !form.MatchString(key) || seen[key] {
			t.Fatalf("Generate = %q %v", key, err)
		}
		seen[key] = true
		if sha != sha256.Sum256([]byte(key)) || !strings.HasPrefix(key, hint) || len(hint) != 8 {
			t.Fatalf("key %q: hint %q", key, hint)
		}
		if got, ok := Parse(key); !ok || got != sha {
			t.Fatalf("Parse(%q) = %x %v", key, got, ok)
		}
		for _, c := range key[3:46] {
			counts[c]++
		}
	}
	// 21,500 draws of 62 characters: 347 each, deviation 18.
	for _, c := range alphabet {
		if n := counts[c]; n < 347-6*19 || n > 347+6*19 {
			t.Errorf("%q was drawn %d times", c, n)
		}
	}
}

// The checksum is the usual CRC-32, so that scanners can verify it.
func TestChecksum(t *testing.T) {
	got := appendCheck([]byte("123456789"))
	sum := uint32(0)
	for _, c := range got[9:] {
		sum = sum*62 + uint32(strings.IndexByte(alphabet, c))
	}
	if sum != crc32.ChecksumIEEE([]byte("123456789")) {
		t.Fatalf("checksum %08x", sum)
	}
}

func TestParseRefuses(t *testing.T) {
	key, _, _, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "pc_", key[:len(key)-1], key + "0", " " + key[1:], strings.ToUpper(key), "PC_" + key[3:],
		"pc-" + key[3:], key[:10] + "é" + key[12:], key[:10] + "\x00" + key[11:], strings.Repeat("a", keySize),
	} {
		if _, ok := Parse(bad); ok {
			t.Errorf("Parse accepts %q", bad)
		}
	}
	// Any single character that differs is noticed (CRC-32 finds every burst of up
	// to 32 bits).
	for i := 3; i < len(key); i++ {
		for _, c := range []byte("0aZ") {
			bad := key[:i] + string(c) + key[i+1:]
			if _, ok := Parse(bad); ok && bad != key {
				t.Errorf("Parse accepts %q for %q", bad, key)
			}
		}
	}
	if n := testing.AllocsPerRun(100, func() { Parse(key) }); n != 0 {
		t.Errorf("Parse: %v allocations", n)
	}
}

func FuzzParse(f *testing.F) {
	key, _, _, _ := Generate()
	f.Add(key)
	f.Add("pc_")
	f.Fuzz(func(t *testing.T, key string) {
		sha, ok := Parse(key)
		if ok && (sha != sha256.Sum256([]byte(key)) || !strings.HasPrefix(key, "pc_") || len(key) != 52) {
			t.Fatalf("Parse(%q) = %x", key, sha)
		}
	})
}

func resource(edit func(*configv1.Metadata, *configv1.Credential)) *configv1.Resource {
	m := &configv1.Metadata{Workspace: "shop", Name: "ci"}
	c := &configv1.Credential{
		Application: "orders",
		Kind:        &configv1.Credential_ApiKey{ApiKey: &configv1.APIKeyCredential{Sha256: make([]byte, 32)}},
		Scopes:      []string{"orders:read", "orders:write"},
		ExpiresAt:   timestamppb.New(time.Unix(2_000_000_000, 999)),
	}
	if edit != nil {
		edit(m, c)
	}
	return &configv1.Resource{Metadata: m, Spec: &configv1.Resource_Credential{Credential: c}}
}

func TestOf(t *testing.T) {
	c, err := Of(resource(nil))
	want := Credential{
		ID: revocation.CredentialKey([32]byte{}), Workspace: "shop", Application: "orders",
		Scopes: "orders:read orders:write", Expires: 2_000_000_000,
	}
	if err != nil || c != want {
		t.Fatalf("%+v %v", c, err)
	}
	if c.ExpiredAt(want.Expires-1) || !c.ExpiredAt(want.Expires) || (Credential{}).ExpiredAt(math.MaxInt64) {
		t.Fatal("ExpiredAt is wrong about its limit")
	}
	// What a revocation calls a key belongs to the key, whatever its name.
	renamed, _ := Of(resource(func(m *configv1.Metadata, _ *configv1.Credential) { m.Workspace, m.Name = "other", "cd" }))
	rekeyed, _ := Of(resource(func(_ *configv1.Metadata, c *configv1.Credential) { c.GetApiKey().Sha256 = bytes.Repeat([]byte{1}, 32) }))
	if renamed.ID != c.ID || rekeyed.ID == c.ID {
		t.Fatalf("ids: %x, renamed %x, of another key %x", c.ID, renamed.ID, rekeyed.ID)
	}
	for name, edit := range map[string]func(*configv1.Metadata, *configv1.Credential){
		"no name":        func(m *configv1.Metadata, _ *configv1.Credential) { m.Name = "" },
		"no workspace":   func(m *configv1.Metadata, _ *configv1.Credential) { m.Workspace = "" },
		"no application": func(_ *configv1.Metadata, c *configv1.Credential) { c.Application = "" },
		"no kind":        func(_ *configv1.Metadata, c *configv1.Credential) { c.Kind = nil },
		"short hash":     func(_ *configv1.Metadata, c *configv1.Credential) { c.GetApiKey().Sha256 = make([]byte, 31) },
		"empty scope":    func(_ *configv1.Metadata, c *configv1.Credential) { c.Scopes = []string{""} },
		"two in one":     func(_ *configv1.Metadata, c *configv1.Credential) { c.Scopes = []string{"a b"} },
		"tab":            func(_ *configv1.Metadata, c *configv1.Credential) { c.Scopes = []string{"a\tb"} },
		"epoch":          func(_ *configv1.Metadata, c *configv1.Credential) { c.ExpiresAt = &timestamppb.Timestamp{} },
		"1969":           func(_ *configv1.Metadata, c *configv1.Credential) { c.ExpiresAt.Seconds = -1 },
		"2107":           func(_ *configv1.Metadata, c *configv1.Credential) { c.ExpiresAt.Seconds = 1 << 32 },
		"no time":        func(_ *configv1.Metadata, c *configv1.Credential) { c.ExpiresAt.Nanos = -1 },
	} {
		if _, err := Of(resource(edit)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "/") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, r := range []*configv1.Resource{nil, {}, {Metadata: &configv1.Metadata{Name: "x"}, Spec: &configv1.Resource_Route{}}} {
		if _, err := Of(r); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v", r, err)
		}
	}
}

// No two credentials that differ in any field share a digest.
func TestDigestTellsApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyCredential(4).Draw(t, "a"), anyCredential(4).Draw(t, "b")
		if (a == b) != (a.Digest() == b.Digest()) {
			t.Fatalf("%+v and %+v", a, b)
		}
	})
	a := Credential{Workspace: "ab", Application: "c"}
	if b := (Credential{Workspace: "a", Application: "bc"}); a.Digest() == b.Digest() {
		t.Fatal("the digest does not tell where a string ends")
	}
}

// anyCredential draws from few keys and names, so that they meet often.
func anyCredential(keys int) *rapid.Generator[Credential] {
	return rapid.Custom(func(t *rapid.T) Credential {
		n := rapid.IntRange(0, keys-1).Draw(t, "n")
		return Credential{
			SHA256:      sha256.Sum256(fmt.Append(nil, n)),
			ID:          revocation.CredentialKey(sha256.Sum256(fmt.Append(nil, n))),
			Workspace:   rapid.SampledFrom([]string{"default", "shop"}).Draw(t, "ws"),
			Application: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "app"),
			Scopes:      rapid.SampledFrom([]string{"", "r", "r w"}).Draw(t, "scopes"),
			Expires:     rapid.SampledFrom([]int64{0, 1, math.MaxUint32}).Draw(t, "expires"),
		}
	})
}
