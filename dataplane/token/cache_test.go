package token

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func TestCacheHitChecksAgain(t *testing.T) {
	cache := NewCache(CacheConfig{})
	i := compile(t, issuerSpec(), keySet(), cache)
	v := NewVerifier(i)
	token := mint(headerMap(nil), claims(nil))
	verify := func(at time.Time) *Refusal {
		_, _, refusal := v.Verify(token, at)
		return refusal
	}
	if refusal := verify(noon); refusal != nil || cache.Len() != 1 {
		t.Fatal(refusal, cache.Len())
	}
	if refusal := verify(noon.Add(630 * time.Second)); refusal != ErrExpired {
		t.Error("expired between hits:", refusal)
	}
	if refusal := verify(noon.Add(-91 * time.Second)); refusal != ErrNotYetValid {
		t.Error("the clock stepped back between hits:", refusal)
	}

	without := func(kid string) *configv1.KeySet {
		set := keySet()
		kept := set.Keys[:0]
		for _, k := range set.Keys {
			if k.Kid != kid {
				kept = append(kept, k)
			}
		}
		set.Keys = kept
		return set
	}
	for _, step := range []struct {
		name string
		set  *configv1.KeySet
		want *Refusal
	}{
		{"another key withdrawn", without("rsa"), nil},
		{"the key withdrawn", without("p256"), ErrUnknownKey},
		{"the keys unavailable", nil, ErrKeysUnavailable},
		{"the key back", keySet(), nil},
		{"the kid given to another key", func() *configv1.KeySet {
			set := without("p256")
			set.Keys = append(set.Keys, &configv1.Key{Kid: "p256", Algorithms: []string{"ES256"}, Spki: spki("other")})
			return set
		}(), ErrSignature},
	} {
		if err := i.SetKeys(step.set); err != nil {
			t.Fatal(err)
		}
		if refusal := verify(noon); refusal != step.want {
			t.Errorf("%s: %v, want %v", step.name, refusal, step.want)
		}
	}
	// A set that does not compile changes nothing.
	if err := i.SetKeys(&configv1.KeySet{Keys: []*configv1.Key{{Kid: "x"}}}); err == nil {
		t.Error("a bad set was taken")
	}
	if refusal := verify(noon); refusal != ErrSignature {
		t.Error(refusal)
	}
}

func TestCacheBelongsToAProfile(t *testing.T) {
	cache := NewCache(CacheConfig{})
	token := mint(headerMap(nil), claims(nil))
	if _, _, refusal := NewVerifier(compile(t, issuerSpec(), keySet(), cache)).Verify(token, noon); refusal != nil {
		t.Fatal(refusal)
	}
	for name, change := range map[string]func(*configv1.Issuer){
		"types":      func(s *configv1.Issuer) { s.Types = []string{"JWT"} },
		"algorithms": func(s *configv1.Issuer) { s.Algorithms = []string{"RS256"} },
		"lifetime":   func(s *configv1.Issuer) { s.MaxLifetime = durationpb.New(time.Minute) },
		"iss":        func(s *configv1.Issuer) { s.Issuer = "https://other.example" },
	} {
		spec := proto.CloneOf(issuerSpec())
		change(spec)
		if _, _, refusal := NewVerifier(compile(t, spec, keySet(), cache)).Verify(token, noon); refusal == nil {
			t.Errorf("%s changed, and the old verdict held", name)
		}
	}
	// The mapping of claims belongs to the verdict too.
	spec := issuerSpec()
	spec.Claims = &configv1.ClaimNames{Scopes: "perms"}
	got, _, refusal := NewVerifier(compile(t, spec, keySet(), cache)).Verify(token, noon)
	if refusal != nil || len(got.Scopes) != 0 {
		t.Error(got, refusal)
	}
	// One compiled anew from the same spec finds what the old one left.
	first, _, _ := NewVerifier(compile(t, issuerSpec(), keySet(), cache)).Verify(token, noon)
	second, _, _ := NewVerifier(compile(t, issuerSpec(), keySet(), cache)).Verify(token, noon)
	if first != second {
		t.Error("verified again")
	}
	// Another issuer's name is another cache, even with the same iss and keys.
	other, err := Compile("other/issuer", issuerSpec(), nil, cache)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, refusal := NewVerifier(other).Verify(token, noon); refusal != ErrKeysUnavailable {
		t.Error(refusal)
	}
	cache.Forget("default/issuer")
	if cache.Len() != 0 || cache.Bytes() != 0 {
		t.Error(cache.Len(), cache.Bytes())
	}
}

func hmacIssuer(t testing.TB, cache *Cache) *Verifier {
	return NewVerifier(compile(t, &configv1.Issuer{
		Issuer: "https://issuer.example", HmacSecret: base64.StdEncoding.EncodeToString([]byte(sharedSecret)),
	}, nil, cache))
}

func TestCacheIsBounded(t *testing.T) {
	for _, config := range []CacheConfig{{Entries: 64}, {Entries: 1 << 12, Bytes: 40_000}, {Entries: 1}, {Bytes: 1}} {
		cache := NewCache(config)
		v := hmacIssuer(t, cache)
		random := rand.New(rand.NewPCG(1, 2))
		for n := range 500 {
			c := claims(m{"jti": fmt.Sprint(n), "pad": strings.Repeat("x", random.IntN(900))})
			token := mint(m{"alg": "HS256", "typ": "at+jwt"}, c)
			for range 1 + random.IntN(2) {
				if _, _, refusal := v.Verify(token, noon); refusal != nil {
					t.Fatal(refusal)
				}
			}
			if cache.Len() > max(config.Entries, ways) && config.Entries != 0 || config.Bytes != 0 && cache.Bytes() > config.Bytes {
				t.Fatalf("%+v: %d entries, %d bytes", config, cache.Len(), cache.Bytes())
			}
		}
		if want := config.Bytes != 1; (cache.Len() > 0) != want {
			t.Errorf("%+v: %d entries kept", config, cache.Len())
		}
		checkAccounts(t, cache)
	}
}

// checkAccounts compares what the cache says it holds with what is there.
func checkAccounts(t *testing.T, cache *Cache) {
	t.Helper()
	entries, bytes := 0, 0
	for _, part := range cache.issuers {
		if table := part.table.Load(); table != nil {
			for i := range *table {
				for j := range (*table)[i] {
					if e := (*table)[i][j].Load(); e != nil {
						entries, bytes = entries+1, bytes+e.size
					}
				}
			}
		}
	}
	if entries != cache.Len() || bytes != cache.Bytes() {
		t.Errorf("%d entries of %d bytes, said %d of %d", entries, bytes, cache.Len(), cache.Bytes())
	}
}

func TestCacheConcurrently(t *testing.T) {
	cache := NewCache(CacheConfig{Entries: 32})
	v := hmacIssuer(t, cache)
	tokens := make([]string, 100)
	for n := range tokens {
		tokens[n] = mint(m{"alg": "HS256", "typ": "at+jwt"}, claims(m{"jti": fmt.Sprint(n)}))
	}
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, 0))
			for range 500 {
				n := random.IntN(len(tokens))
				got, _, refusal := v.Verify(tokens[n], noon)
				if refusal != nil || got.ID != fmt.Sprint(n) {
					t.Errorf("%d: %v %v", n, got, refusal)
					return
				}
			}
		})
	}
	wg.Wait()
	checkAccounts(t, cache)
}

func TestCacheHitAllocatesNothing(t *testing.T) {
	v := NewVerifier(compile(t, issuerSpec(), keySet(), NewCache(CacheConfig{})))
	token := mint(headerMap(nil), claims(nil))
	if n := testing.AllocsPerRun(100, func() {
		if _, _, refusal := v.Verify(token, noon); refusal != nil {
			t.Fatal(refusal)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkVerify(b *testing.B) {
	for alg, kid := range map[string]string{"RS256": "rsa", "ES256": "p256", "EdDSA": "ed"} {
		token := mint(headerMap(m{"alg": alg, "kid": kid}), claims(nil))
		for name, cache := range map[string]*Cache{"hit": NewCache(CacheConfig{}), "miss": nil} {
			v := NewVerifier(compile(b, issuerSpec(), keySet(), cache))
			b.Run(alg+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, _, refusal := v.Verify(token, noon); refusal != nil {
						b.Fatal(refusal)
					}
				}
			})
		}
	}
}
