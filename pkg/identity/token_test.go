package identity

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestJoinToken(t *testing.T) {
	now := time.Now()
	ca, err := newCA(t, now).Rotate(now, 0)
	if err != nil {
		t.Fatal(err)
	}
	token, err := NewJoinToken(ca.Pins())
	if err != nil {
		t.Fatal(err)
	}
	text := token.Reveal()
	back, err := ParseJoinToken(text)
	if err != nil || back.ID() != token.ID() || fmt.Sprint(back.Pins()) != fmt.Sprint(ca.Pins()) {
		t.Fatalf("parsed as %v, %v", back, err)
	}
	if other, _ := NewJoinToken(ca.Pins()); other.ID() == token.ID() {
		t.Error("two tokens are the same")
	}
	for _, shown := range []string{fmt.Sprint(token), fmt.Sprintf("%#v %x %+v", token, token, token), token.LogValue().String(), token.ID()} {
		if strings.Contains(shown, text) || strings.Contains(shown, fmt.Sprintf("%x", token.secret)) {
			t.Errorf("shows its secret: %s", shown)
		}
	}
	if _, err := NewJoinToken(nil); err == nil {
		t.Error("a token without a pin")
	}
}

// Every change of one character of a token or credential is noticed.
func TestTextIsExact(t *testing.T) {
	token, _ := NewJoinToken([][sha256.Size]byte{{1}})
	credential, digest := NewOperatorCredential()
	parse := map[string]func(string) error{
		token.Reveal(): func(s string) error { _, err := ParseJoinToken(s); return err },
		credential:     func(s string) error { _, err := ParseOperatorCredential(s); return err },
	}
	rapid.Check(t, func(rt *rapid.T) {
		for text, check := range parse {
			at := rapid.IntRange(0, len(text)-1).Draw(rt, "at")
			with := rapid.StringN(0, 2, 4).Draw(rt, "with")
			bad := text[:at] + with + text[at+1:]
			if err := check(bad); bad != text && err == nil {
				rt.Fatalf("%q accepted for %q", bad, text)
			} else if bad == text && err != nil {
				rt.Fatal(err)
			}
		}
	})
	for text, check := range parse {
		for _, bad := range []string{"", text[:4], text + "\n", " " + text, text + text, strings.ToUpper(text), text[:len(text)-1]} {
			err := check(bad)
			if !errors.Is(err, ErrJoinToken) && !errors.Is(err, ErrOperatorCredential) {
				t.Errorf("%q: %v", bad, err)
			}
			if err != nil && len(bad) > 8 && strings.Contains(err.Error(), bad[4:]) {
				t.Error("the error holds the secret")
			}
		}
	}
	if _, err := ParseOperatorCredential(token.Reveal()); err == nil {
		t.Error("a join token is no operator credential")
	}
	got, err := ParseOperatorCredential(credential)
	if err != nil || !SameDigest(got, digest[:]) {
		t.Errorf("digest %x, %v", got, err)
	}
	digest[31] ^= 1
	if SameDigest(got, digest[:]) || SameDigest(got, nil) || SameDigest(got, digest[:31]) {
		t.Error("unlike digests are the same")
	}
}

func TestRejoin(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	old := member(t, ca, Dataplane, "n1", now)
	_, csr, err := NewRequest(old.Identity())
	if err != nil {
		t.Fatal(err)
	}
	proof, err := old.State().Rejoin(csr)
	if err != nil {
		t.Fatal(err)
	}
	week := 7 * 24 * time.Hour
	for _, at := range []time.Duration{0, 23 * time.Hour, 25 * time.Hour, week} {
		if id, err := ca.VerifyRejoin(proof, csr, week, now.Add(at)); err != nil || id != old.Identity() {
			t.Errorf("after %v: %v, %v", at, id, err)
		}
	}
	if _, err := ca.VerifyRejoin(proof, csr, week, now.Add(week+25*time.Hour)); !errors.Is(err, ErrExpired) {
		t.Errorf("past the grace: %v", err)
	}
	_, otherCSR, _ := NewRequest(old.Identity())
	stranger := member(t, newCA(t, now), Dataplane, "n1", now)
	foreign, _ := stranger.State().Rejoin(csr)
	mixed := State{Key: stranger.State().Key, Issued: old.State().Issued}
	stolen, _ := mixed.Rejoin(csr)
	for name, c := range map[string]struct {
		proof string
		csr   []byte
	}{
		"another request": {proof, otherCSR},
		"another cluster": {foreign, csr},
		"another's key":   {stolen, csr},
		"cut":             {proof[:len(proof)-4], csr},
		"no certificate":  {RejoinPrefix + "AAA", csr},
		"long":            {RejoinPrefix + strings.Repeat("A", 10<<10), csr},
		"empty":           {"", csr},
	} {
		if _, err := ca.VerifyRejoin(c.proof, c.csr, week, now); !errors.Is(err, ErrRejoin) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzText(f *testing.F) {
	token, _ := NewJoinToken([][sha256.Size]byte{{1}})
	credential, _ := NewOperatorCredential()
	now := time.Now()
	ca := newCA(f, now)
	f.Add(token.Reveal())
	f.Add(credential)
	f.Add(RejoinPrefix + "AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		if parsed, err := ParseJoinToken(s); err == nil && parsed.Reveal() != s {
			t.Errorf("join token %q has a second spelling", s)
		}
		if _, err := ParseOperatorCredential(s); err == nil && len(s) != len(credential) {
			t.Errorf("credential %q has another length", s)
		}
		if id, err := ca.VerifyRejoin(s, nil, time.Hour, now); err == nil {
			t.Errorf("%q rejoins as %v", s, id)
		}
	})
}
