package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sealer(t testing.TB, keys ...Key) *Sealer {
	t.Helper()
	s, err := New(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealOpens(t *testing.T) {
	s := sealer(t, NewKey())
	rapid.Check(t, func(rt *rapid.T) {
		plain := rapid.SliceOf(rapid.Byte()).Draw(rt, "plain")
		aad := rapid.SliceOf(rapid.Byte()).Draw(rt, "aad")
		blob, err := s.Seal(plain, aad)
		if err != nil {
			rt.Fatal(err)
		}
		if len(blob) != len(plain)+Overhead {
			rt.Fatalf("blob of %d bytes for %d", len(blob), len(plain))
		}
		got, err := s.Open(blob, aad)
		if err != nil || !bytes.Equal(got, plain) {
			rt.Fatalf("opened %x, %v; sealed %x", got, err, plain)
		}
		if _, err := s.Open(blob, append(aad, 'x')); !errors.Is(err, ErrNotSealed) {
			rt.Fatalf("opened elsewhere: %v", err)
		}
		at := rapid.IntRange(0, len(blob)-1).Draw(rt, "at")
		bad := bytes.Clone(blob)
		bad[at] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
		if _, err := s.Open(bad, aad); err == nil {
			rt.Fatalf("opened with byte %d altered", at)
		}
		if _, err := s.Open(blob[:at], aad); err == nil {
			rt.Fatalf("opened when cut to %d bytes", at)
		}
	})
}

func TestRotation(t *testing.T) {
	older, newer := NewKey(), NewKey()
	s := sealer(t, older)
	blob, err := s.Seal([]byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Stale(blob) {
		t.Error("stale before the rotation")
	}
	if err := s.SetKeys(newer, older); err != nil {
		t.Fatal(err)
	}
	if !s.Stale(blob) {
		t.Error("not stale after the rotation")
	}
	if plain, err := s.Open(blob, nil); err != nil || string(plain) != "x" {
		t.Errorf("after the rotation: %q, %v", plain, err)
	}
	again, err := s.Seal([]byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetKeys(newer); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(blob, nil); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("without the old key: %v", err)
	}
	if _, err := s.Open(again, nil); err != nil {
		t.Errorf("sealed again: %v", err)
	}
	if err := s.SetKeys(); err == nil {
		t.Error("no keys accepted")
	}
	if err := s.SetKeys(newer, newer); err == nil {
		t.Error("one key twice accepted")
	}
}

func TestKeyFileCreatedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "key")
	if _, err := (File{Path: path}).Keys(); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("absent file: %v", err)
	}
	ids := make([]uint32, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			keys, err := File{Path: path, Create: true}.Keys()
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = keys[0].ID()
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("two processes hold different keys: %08x, %08x", id, ids[0])
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	keys, err := File{Path: path}.Rotate()
	if err != nil || len(keys) != 2 || keys[1].ID() != ids[0] {
		t.Fatalf("rotated to %d keys, %v", len(keys), err)
	}
	s, err := Load(File{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	blob, _ := s.Seal(nil, nil)
	if id, _ := keyID(blob); id != keys[0].ID() {
		t.Error("the new key does not seal")
	}
}

func TestKeyFileRefused(t *testing.T) {
	good := string(FormatKeys(NewKey()))
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"others may read":   {good, 0o604, "lets others in"},
		"group may write":   {good, 0o620, "lets others in"},
		"empty":             {"", 0o600, "holds no key"},
		"comments only":     {"# x\n\n", 0o600, "holds no key"},
		"no base64":         {"# x\nhunter2!\n", 0o600, "line 2: want one key"},
		"short":             {"aHVudGVyMg==\n", 0o600, "has 32 bytes, this one has 7"},
		"zeros":             {strings.Repeat("A", 43) + "=\n", 0o600, "must be random"},
		"one key, twice in": {good + good, 0o600, "listed twice"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := Load(File{Path: path, Create: true})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Error("the error holds the content")
			}
		})
	}
}

func TestReferences(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	key := NewKey()
	if err := WriteFile(path, FormatKeys(key), 0o640); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PORTCULLIS_TEST_KEYS", strings.ReplaceAll(string(FormatKeys(key)), "\n", ","))
	for _, ref := range []string{path, "file:" + path, "env:PORTCULLIS_TEST_KEYS"} {
		p, err := ProviderOf(ref)
		if err != nil {
			t.Fatal(ref, err)
		}
		keys, err := p.Keys()
		if err != nil || keys[0].ID() != key.ID() {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{"", "vault:x", "env:PORTCULLIS_TEST_ABSENT"} {
		p, err := ProviderOf(ref)
		if err == nil {
			_, err = p.Keys()
		}
		if err == nil {
			t.Errorf("%q accepted", ref)
		}
	}

	if err := WriteFile(path, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PORTCULLIS_TEST_SECRET", "s3cret")
	for _, ref := range []string{"file:" + path, "env:PORTCULLIS_TEST_SECRET"} {
		if v, err := Resolve(ref); err != nil || v.Reveal() != "s3cret" {
			t.Errorf("%s: %q, %v", ref, v.Reveal(), err)
		}
	}
	for _, ref := range []string{"", "s3cret", "env:PORTCULLIS_TEST_ABSENT", "file:" + path + ".absent"} {
		if _, err := Resolve(ref); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

func TestRedactedNeverPrints(t *testing.T) {
	r := Redacted("s3cret")
	key := NewKey()
	in := struct {
		R Redacted
		P *Redacted
		K Key
	}{r, &r, key}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "r", r, "in", in)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "r", r, "in", in)
	j, err := json.Marshal(map[string]any{"r": r, "in": in})
	if err != nil {
		t.Fatal(err)
	}
	out := log.String() + string(j)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		out += fmt.Sprintf(verb, r) + fmt.Sprintf(verb, in)
	}
	for _, leak := range []string{"s3cret", "733363726574", fmt.Sprint(key.bytes[0], key.bytes[1])} {
		if strings.Contains(strings.ToLower(out), leak) {
			t.Errorf("%q printed:\n%s", leak, out)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s := sealer(f, NewKey())
	blob, _ := s.Seal([]byte("plain"), []byte("aad"))
	f.Add(blob, []byte("aad"))
	f.Add([]byte{}, []byte{})
	f.Add(blob[:Overhead-1], []byte("aad"))
	f.Fuzz(func(t *testing.T, sealed, aad []byte) {
		plain, err := s.Open(sealed, aad)
		if err == nil && !(bytes.Equal(sealed, blob) && string(aad) == "aad" && string(plain) == "plain") {
			t.Error("opened a blob that nobody sealed")
		}
	})
}
