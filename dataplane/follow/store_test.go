package follow

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// disk is a node's directory with three states: 5, 6 and 7, of which 7 holds a
// credential and a revocation.
type disk struct {
	dir    string
	sealer Sealer
	author *author
	key    credential.Credential
}

func newDisk(t testing.TB) *disk {
	t.Helper()
	d := &disk{dir: t.TempDir(), sealer: newSealer(t), author: newAuthor(t)}
	d.key = credential.Credential{SHA256: sha256.Sum256([]byte("k")), ID: revocation.CredentialKey(sha256.Sum256([]byte("k"))), Workspace: "default", Application: "a"}
	for v := int64(4); v <= 7; v++ {
		d.save(t, at(v))
	}
	return d
}

// save has a node apply a version and save it.
func (d *disk) save(t testing.TB, v config.Version) {
	t.Helper()
	n := newNode(t, func(c *Config) {
		c.Store = openStore(t, d.dir, d.sealer)
		c.SigningKeys = [][]byte{d.author.public}
	})
	all := []*configv1.Resource{application("a", fmt.Sprint(v))}
	u := d.author.seal(t, &controlv1.Update{
		Version: v.Proto(), Upserts: all, Credentials: credential.Pack([]credential.Credential{d.key}, nil),
	}, all, d.key)
	var a assembly
	if done, err := a.add(u, 1<<20); !done || err != nil {
		t.Fatalf("assembly: %v %v", done, err)
	}
	in, err := n.door.admit(t, &a)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.door.commit(in); err != nil {
		t.Fatal(err)
	}
	n.welcome = &controlv1.Welcome{SigningKeys: [][]byte{d.author.public}}
	n.cfg.Revocations.Add(revocation.Entry{
		Key:    revocation.KeyOf(controlv1.RevocationKind_REVOCATION_KIND_JTI, "", fmt.Sprint("t", v.Revision)),
		Before: revocation.Always, Expires: time.Now().Add(time.Hour).Unix(),
	})
	if got, err := n.saveOnce(config.Version{}); err != nil || got != v {
		t.Fatalf("saved %v: %v", got, err)
	}
}

func (d *disk) path(v int64) string { return filepath.Join(d.dir, fileName(at(v))) }

// start starts a node from the disk alone.
func (d *disk) start(t testing.TB) *node {
	t.Helper()
	return newNode(t, func(c *Config) { c.Store = openStore(t, d.dir, d.sealer) })
}

func TestColdStart(t *testing.T) {
	d := newDisk(t)
	n := d.start(t)
	equal(t, "applied", n.versions(), []int64{7})
	if n.Status().Version != at(7) || n.Status().Connected {
		t.Errorf("status: %+v", n.Status())
	}
	if _, ok := n.cfg.Credentials.Lookup(&d.key.SHA256); !ok {
		t.Error("the credential did not survive")
	}
	if _, denied := n.cfg.Revocations.Revoked(&revocation.Subject{JTI: "t7"}); !denied {
		t.Error("the revocation did not survive")
	}
	if n.denied() != 7 || n.cfg.Freshness.Ready() {
		t.Errorf("held %d, ready %v", n.denied(), n.cfg.Freshness.Ready())
	}
	files, _ := filepath.Glob(filepath.Join(d.dir, "*"))
	if len(files) != kept+len(catalogNames) {
		t.Errorf("on disk: %v", files)
	}
	for _, f := range files {
		if i, err := os.Stat(f); err != nil || i.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, i.Mode(), err)
		}
		if b, _ := os.ReadFile(f); bytes.Contains(b, []byte("default")) {
			t.Errorf("%s is readable", f)
		}
	}
}

func TestBadFilesAreSetAsideAndOlderOnesUsed(t *testing.T) {
	read := func(t *testing.T, path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := func(t *testing.T, path string, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cases := map[string]struct {
		do   func(t *testing.T, d *disk)
		want []int64
	}{
		"truncated":        {func(t *testing.T, d *disk) { b := read(t, d.path(7)); write(t, d.path(7), b[:len(b)-1]) }, []int64{6}},
		"empty":            {func(t *testing.T, d *disk) { write(t, d.path(7), nil) }, []int64{6}},
		"only the magic":   {func(t *testing.T, d *disk) { write(t, d.path(7), []byte(magic)) }, []int64{6}},
		"appended to":      {func(t *testing.T, d *disk) { write(t, d.path(7), append(read(t, d.path(7)), 0)) }, []int64{6}},
		"huge length":      {func(t *testing.T, d *disk) { write(t, d.path(7), append([]byte(magic), 255, 255, 255, 255, 1)) }, []int64{6}},
		"replayed":         {func(t *testing.T, d *disk) { write(t, d.path(7), read(t, d.path(5))) }, []int64{6}},
		"future name":      {func(t *testing.T, d *disk) { write(t, d.path(99), read(t, d.path(7))) }, []int64{7}},
		"two of three bad": {func(t *testing.T, d *disk) { write(t, d.path(7), nil); write(t, d.path(6), nil) }, []int64{5}},
		"all bad": {func(t *testing.T, d *disk) {
			for v := int64(5); v <= 7; v++ {
				write(t, d.path(v), []byte("x"))
			}
		}, nil},
		"missing":       {func(t *testing.T, d *disk) { os.Remove(d.path(7)) }, []int64{6}},
		"strange names": {func(t *testing.T, d *disk) { write(t, filepath.Join(d.dir, "state-1-7.lkg"), read(t, d.path(7))) }, []int64{7}},
		"bad catalog":   {func(t *testing.T, d *disk) { write(t, filepath.Join(d.dir, catalogNames[0]), []byte("x")) }, []int64{7}},
		"no catalog": {func(t *testing.T, d *disk) {
			write(t, filepath.Join(d.dir, catalogNames[0]), []byte("x"))
			os.Remove(filepath.Join(d.dir, catalogNames[1]))
		}, nil},
		"another node's key": {func(t *testing.T, d *disk) {
			d.sealer = newSealer(t)
		}, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			c.do(t, d)
			equal(t, "applied", d.start(t).versions(), c.want)
			// What was set aside is not looked at again.
			equal(t, "applied at the next start", d.start(t).versions(), c.want)
		})
	}
}

func TestBadCatalogWithPinnedKeys(t *testing.T) {
	d := newDisk(t)
	for _, name := range catalogNames {
		if err := os.WriteFile(filepath.Join(d.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, "applied without a key", d.start(t).versions(), nil)
	n := newNode(t, func(c *Config) { c.Store, c.SigningKeys = openStore(t, d.dir, d.sealer), [][]byte{d.author.public} })
	equal(t, "applied", n.versions(), []int64{7})
}

func TestEveryFlippedBitIsDetected(t *testing.T) {
	d := newDisk(t)
	good, err := os.ReadFile(d.path(7))
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if _, err := readState(bytes.NewReader(bad), d.sealer, at(7), 1<<20); !errors.Is(err, ErrTampered) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
}

func TestOldFilePutBackIsRefused(t *testing.T) {
	d := newDisk(t)
	old, err := os.ReadFile(d.path(5))
	if err != nil {
		t.Fatal(err)
	}
	d.save(t, at(8)) // 5 is dropped
	for v := int64(6); v <= 8; v++ {
		os.Remove(d.path(v))
	}
	if err := os.WriteFile(d.path(5), old, 0o600); err != nil {
		t.Fatal(err)
	}
	equal(t, "applied", d.start(t).versions(), nil)
}

func TestFloorOutlivesALostFile(t *testing.T) {
	d := newDisk(t)
	os.Remove(d.path(7))
	n := d.start(t)
	equal(t, "applied", n.versions(), []int64{6})
	var a assembly
	u := d.author.full(t, at(6), application("a", "other"))
	if _, err := a.add(u, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := n.door.admit(t, &a); !errors.Is(err, ErrOlder) {
		t.Errorf("a state older than what this node has run: %v", err)
	}
}

func TestStateThatDoesNotCompileIsSkippedNotSetAside(t *testing.T) {
	d := newDisk(t)
	n := newNode(t, func(c *Config) {
		c.Store = openStore(t, d.dir, d.sealer)
		c.Applier.(*recorder).refuse = func(n Next) error {
			if n.Version == at(7) {
				return errors.New("this release cannot")
			}
			return nil
		}
	})
	equal(t, "applied", n.versions(), []int64{6})
	equal(t, "applied by a release that can", d.start(t).versions(), []int64{7})
}

func TestSaveNeverRegresses(t *testing.T) {
	d := newDisk(t)
	s := openStore(t, d.dir, d.sealer)
	if err := s.save(at(6), [32]byte{}, nil, func(*stateWriter) error { return nil }); !errors.Is(err, ErrRegress) {
		t.Errorf("saved an older state: %v", err)
	}
	broken := errors.New("disk full")
	if err := s.save(at(9), [32]byte{}, nil, func(*stateWriter) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("a failed save: %v", err)
	}
	files, _ := filepath.Glob(filepath.Join(d.dir, "*.tmp"))
	if len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
	equal(t, "applied", d.start(t).versions(), []int64{7})
}

func TestRunSavesWhatItApplies(t *testing.T) {
	dir, sealer, w := t.TempDir(), newSealer(t), newAuthor(t)
	play(t, func(c *Config) { c.Store = openStore(t, dir, sealer) }, func(k *talk) error {
		return k.step(5, "", true, w.welcome(), message(w.full(t, at(5), application("a", "1"))))
	})
	// With no other part of the cluster, and no key but those of the last Welcome.
	n := newNode(t, func(c *Config) { c.Store = openStore(t, dir, sealer) })
	equal(t, "applied", n.versions(), []int64{5})
}

func FuzzReadState(f *testing.F) {
	d := newDisk(f)
	good, err := os.ReadFile(d.path(7))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := readState(bytes.NewReader(b), d.sealer, at(7), 1<<20)
		if (err == nil) != bytes.Equal(b, good) {
			t.Errorf("%v, %v", st, err)
		}
	})
}

// TestDoorNeverRegresses sends a door anything that a signer could have signed,
// in any order.
func TestDoorNeverRegresses(t *testing.T) {
	w := newAuthor(t)
	rapid.Check(t, func(rt *rapid.T) {
		n := newNode(t, func(c *Config) { c.SigningKeys = [][]byte{w.public} })
		version := rapid.Custom(func(rt *rapid.T) config.Version {
			return config.Version{Epoch: rapid.Uint64Range(1, 3).Draw(rt, "epoch"), Revision: rapid.Int64Range(1, 9).Draw(rt, "revision")}
		})
		state := map[string]*configv1.Resource{}
		for range rapid.IntRange(1, 12).Draw(rt, "updates") {
			r := application("a", fmt.Sprint(rapid.IntRange(0, 3).Draw(rt, "content")))
			u := &controlv1.Update{Version: version.Draw(rt, "version").Proto(), Upserts: []*configv1.Resource{r}}
			if rapid.Bool().Draw(rt, "delta") {
				u.From = version.Draw(rt, "from").Proto()
				if rapid.Bool().Draw(rt, "fits") && !n.door.held.version.IsZero() {
					u.From = n.door.held.version.Proto()
				}
			}
			u = w.seal(t, u, []*configv1.Resource{r})
			var a assembly
			if _, err := a.add(proto.CloneOf(u), 1<<20); err != nil {
				rt.Fatal(err)
			}
			before := n.door.held.version
			in, err := n.door.admit(t, &a)
			if err != nil {
				continue
			}
			if err := n.door.commit(in); err != nil {
				rt.Fatal(err)
			}
			state["a"] = r
			if got := n.door.held.version; got.Compare(before) < 0 || got != a.version || a.from != before && !a.full() {
				rt.Fatalf("%v..%v took the node from %v to %v", a.from, a.version, before, got)
			}
			if !bytes.Equal(n.door.digest(), u.Digest) {
				rt.Fatal("runs something else than was announced")
			}
		}
	})
}
