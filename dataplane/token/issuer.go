package token

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// What an issuer gets that does not say.
const (
	DefaultClockSkew   = 30 * time.Second
	MaxClockSkew       = 60 * time.Second
	DefaultMaxLifetime = 24 * time.Hour
	defaultType        = "at+jwt"
	minSecret          = 32
)

// Issuer is one trusted source of tokens, compiled: its verification profile,
// which never changes, and its keys, which do as it rotates them. Safe for
// concurrent use.
type Issuer struct {
	name       string
	issuer     string
	algorithms []algorithm
	types      []string
	skew       int64
	lifetime   int64
	claims     *configv1.ClaimNames
	secret     *key
	// remote: keys come from a key set, and can therefore be unavailable.
	remote bool
	// profile identifies all of the above, so that a verdict reached under one
	// profile is never used under another.
	profile [sha256.Size]byte
	cache   *issuerCache

	keys atomic.Pointer[keys]
	// asked is when somebody last was to ask for its keys, Unix nanoseconds.
	asked atomic.Int64
}

// Compile compiles an issuer and its vetted keys, without I/O. name is what the
// cluster calls it, "workspace/name"; set is nil when its keys have not been
// fetched yet; cache may be nil.
func Compile(name string, spec *configv1.Issuer, set *configv1.KeySet, cache *Cache) (*Issuer, error) {
	if spec.GetIssuer() == "" {
		return nil, errors.New("issuer: empty")
	}
	i := &Issuer{
		name:     name,
		issuer:   spec.GetIssuer(),
		types:    []string{defaultType},
		skew:     int64(DefaultClockSkew / time.Second),
		lifetime: int64(DefaultMaxLifetime / time.Second),
		claims:   proto.CloneOf(spec.GetClaims()),
		remote:   spec.GetJwksUri() != "" || spec.GetJwks() != "" || spec.GetBuiltIn(),
	}
	if len(spec.GetTypes()) > 0 {
		i.types = slices.Clone(spec.GetTypes())
	}
	if d := spec.GetClockSkew(); d != nil {
		if d.AsDuration() < 0 || d.AsDuration() > MaxClockSkew {
			return nil, fmt.Errorf("clockSkew: %s is not between 0s and %s", d.AsDuration(), MaxClockSkew)
		}
		i.skew = int64(d.AsDuration() / time.Second)
	}
	if d := spec.GetMaxLifetime(); d != nil {
		if d.AsDuration() <= 0 {
			return nil, fmt.Errorf("maxLifetime: %s is not positive", d.AsDuration())
		}
		i.lifetime = int64(d.AsDuration() / time.Second)
	}
	if err := i.setAlgorithms(spec); err != nil {
		return nil, err
	}
	canonical, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	i.profile = sha256.Sum256(append([]byte(name+"\x00"), canonical...))
	i.cache = cache.of(name)
	return i, i.SetKeys(set)
}

func (i *Issuer) setAlgorithms(spec *configv1.Issuer) error {
	if spec.GetHmacSecret() != "" {
		material, err := base64.StdEncoding.DecodeString(spec.GetHmacSecret())
		if err != nil {
			return errors.New("hmacSecret: not base64") // err would quote the secret's bytes
		}
		if len(material) < minSecret {
			return fmt.Errorf("hmacSecret: %d bytes, not at least %d", len(material), minSecret)
		}
		i.secret = &key{algorithm: hs256, public: secret(material), print: printOf("", hs256, material)}
	}
	for _, name := range spec.GetAlgorithms() {
		a := algorithm(name)
		if !a.known() {
			return fmt.Errorf("algorithms: %q is not one of them", name)
		}
		if a == hs256 && i.secret == nil {
			return errors.New("algorithms: HS256 without hmacSecret")
		}
		i.algorithms = append(i.algorithms, a)
	}
	if len(i.algorithms) > 0 {
		return nil
	}
	if i.remote || i.secret == nil {
		i.algorithms = asymmetric()
	}
	if i.secret != nil {
		i.algorithms = append(i.algorithms, hs256)
	}
	return nil
}

// SetKeys replaces the key set: tokens verified with a key that is not in it any
// more are verified again, and refused. nil means that none is known.
func (i *Issuer) SetKeys(set *configv1.KeySet) error {
	ks, err := keysOf(set)
	if err != nil {
		return err
	}
	i.keys.Store(ks)
	return nil
}

// Name returns what the cluster calls the issuer: "workspace/name".
func (i *Issuer) Name() string { return i.name }

// askEvery is the least time between two questions after an issuer's keys.
const askEvery = time.Second

// Ask says whether to ask for the issuer's keys now, which somebody did not do
// within the last second: tokens that name keys at random cost next to nothing.
func (i *Issuer) Ask(now time.Time) bool {
	at, last := now.UnixNano(), i.asked.Load()
	// A clock that was set back must not keep anybody from asking.
	if last != 0 && time.Duration(at-last).Abs() < askEvery {
		return false
	}
	return i.asked.CompareAndSwap(last, at)
}

// Issuer returns the iss claim of its tokens.
func (i *Issuer) Issuer() string { return i.issuer }

// available says whether keys may be used: current ones are there.
func (i *Issuer) available(ks *keys, now int64) bool {
	return len(ks.list) > 0 && now < ks.staleAt
}

// key finds the key that a token's header asks for. The algorithm has to be one
// of the issuer's before any key is looked at, and the key has to be one for
// exactly that algorithm: what the header says never chooses how a key is used.
func (i *Issuer) key(h *header, now int64) (*key, *Refusal) {
	if !slices.Contains(i.algorithms, h.algorithm) {
		return nil, ErrAlgorithm
	}
	if h.algorithm == hs256 {
		return i.secret, nil
	}
	ks := i.keys.Load()
	if !i.available(ks, now) {
		return nil, ErrKeysUnavailable
	}
	if k := ks.find(h.kid, h.named, h.algorithm); k != nil {
		return k, nil
	}
	if h.named && len(ks.byKid[h.kid]) > 0 {
		return nil, ErrAlgorithm
	}
	return nil, ErrUnknownKey
}

// current says whether a cached verdict's key is still the issuer's.
func (i *Issuer) current(used *[sha256.Size]byte, now int64) (bool, *Refusal) {
	if i.secret != nil && i.secret.print == *used {
		return true, nil
	}
	ks := i.keys.Load()
	if !i.available(ks, now) {
		return false, ErrKeysUnavailable
	}
	return ks.holds(used), nil
}

// accepts says whether a typ header is one of the issuer's. It is a media type
// without regard to case, whose "application/" may be left out (RFC 7515 section
// 4.1.9).
func (i *Issuer) accepts(typ string) bool {
	typ = mediaType(typ)
	return slices.ContainsFunc(i.types, func(t string) bool { return equalFold(mediaType(t), typ) })
}

func mediaType(typ string) string {
	const prefix = "application/"
	if len(typ) > len(prefix) && equalFold(typ[:len(prefix)], prefix) && !strings.Contains(typ[len(prefix):], "/") {
		return typ[len(prefix):]
	}
	return typ
}

// equalFold compares ASCII without regard to case, and nothing else.
func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		x, y := a[i], b[i]
		if x != y && (x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z') {
			return false
		}
	}
	return true
}
