package follow

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"portcullis.dev/portcullis/pkg/config"
)

// Sealer seals what goes to disk; see secret.Sealer.
type Sealer interface {
	Seal(plain, aad []byte) ([]byte, error)
	Open(sealed, aad []byte) ([]byte, error)
}

// ErrTampered says that a file is not what this node wrote under that name.
var ErrTampered = errors.New("last-known-good file is damaged, forged or replayed")

const (
	kept       = 3
	suffix     = ".lkg"
	badSuffix  = ".bad"
	catalogAAD = "portcullis last-known-good catalog 1"
)

// catalogNames are the catalog's two copies, so that one that is lost costs
// nothing.
var catalogNames = [...]string{"catalog-a", "catalog-b"}

// Store keeps the last states that the node ran, sealed, the newest three. Each
// is one file, written aside, synced and renamed; its name says its version and
// is bound into the seal. A sealed catalog names the files that belong, and the
// newest version that the node has ever run, so that an old file put back is
// recognised. Not safe for concurrent use.
type Store struct {
	dir     string
	sealer  Sealer
	catalog catalog
}

// catalog is what the store knows besides the files.
type catalog struct {
	Floor config.Version
	Files []catalogFile // newest first
	// Keys sign versions (PKIX DER), as of the last Welcome.
	Keys [][]byte
}

type catalogFile struct {
	Version config.Version
	Digest  []byte
}

// OpenStore opens the directory, which it makes with mode 0700 when there is
// none. Should both copies of the catalog be damaged, they are set aside and the
// files are judged by their seals and signatures alone.
func OpenStore(dir string, sealer Sealer) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("last-known-good: %w", err)
	}
	s := &Store{dir: dir, sealer: sealer}
	leftovers, _ := filepath.Glob(filepath.Join(dir, "*.tmp"))
	for _, f := range leftovers {
		os.Remove(f)
	}
	for _, name := range catalogNames {
		c, err := s.readCatalog(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, ErrTampered):
			s.setAside(name)
		case err != nil:
			return nil, fmt.Errorf("last-known-good: %w", err)
		case c.Floor.Compare(s.catalog.Floor) > 0:
			s.catalog = c
		}
	}
	return s, nil
}

func (s *Store) readCatalog(name string) (c catalog, err error) {
	sealed, err := os.ReadFile(s.path(name))
	if err != nil {
		return catalog{}, err
	}
	plain, err := s.sealer.Open(sealed, []byte(catalogAAD))
	if err == nil {
		err = json.Unmarshal(plain, &c)
	}
	if err != nil {
		return catalog{}, fmt.Errorf("%w: catalog: %w", ErrTampered, err)
	}
	return c, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

func fileName(v config.Version) string {
	return fmt.Sprintf("state-%020d-%020d%s", v.Epoch, v.Revision, suffix)
}

// candidates returns the versions of the files there are, newest first. Files
// that the catalog knows nothing of are set aside, unless they are newer than
// all that it knows: then the node ended between writing file and catalog.
func (s *Store) candidates() ([]config.Version, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("last-known-good: %w", err)
	}
	var versions []config.Version
	for _, e := range entries {
		name := e.Name()
		if !strings.HasSuffix(name, suffix) {
			continue
		}
		var v config.Version
		if _, err := fmt.Sscanf(name, "state-%d-%d", &v.Epoch, &v.Revision); err != nil || fileName(v) != name {
			s.setAside(name)
			continue
		}
		if _, known := s.known(v); !known && v.Compare(s.catalog.Floor) <= 0 {
			s.setAside(name)
			continue
		}
		versions = append(versions, v)
	}
	slices.SortFunc(versions, func(a, b config.Version) int { return b.Compare(a) })
	return versions, nil
}

func (s *Store) known(v config.Version) (catalogFile, bool) {
	for _, f := range s.catalog.Files {
		if f.Version == v {
			return f, true
		}
	}
	return catalogFile{}, false
}

// load reads a state whole. Errors are ErrTampered when the file is not what
// this node wrote.
func (s *Store) load(v config.Version, maxBytes int) (*stored, error) {
	f, err := os.Open(s.path(fileName(v)))
	if err != nil {
		return nil, fmt.Errorf("last-known-good: %w", err)
	}
	defer f.Close()
	st, err := readState(f, s.sealer, v, maxBytes)
	if err != nil {
		return nil, err
	}
	if k, ok := s.known(v); ok && !bytes.Equal(k.Digest, st.state.digest[:]) {
		return nil, fmt.Errorf("%w: another state of version %v", ErrTampered, v)
	}
	return st, nil
}

// setAside keeps a bad file for people to look at, under a name that is never
// read again. The newest three are kept.
func (s *Store) setAside(name string) {
	_ = os.Rename(s.path(name), s.path(name+badSuffix))
	bad, _ := filepath.Glob(s.path("*" + badSuffix))
	for len(bad) > kept {
		os.Remove(bad[0])
		bad = bad[1:]
	}
}

// ErrRegress says that a state to save is older than one that was saved.
var ErrRegress = errors.New("older than the newest last-known-good state")

// save writes a state as the newest. body writes its content; it ends before
// the file is synced.
func (s *Store) save(v config.Version, digest [32]byte, keys [][]byte, body func(*stateWriter) error) error {
	if v.Compare(s.catalog.Floor) < 0 {
		return fmt.Errorf("save %v: %w: %v", v, ErrRegress, s.catalog.Floor)
	}
	if err := s.write(fileName(v), func(f *os.File) error {
		w := newStateWriter(f, s.sealer, v)
		if err := body(w); err != nil {
			return err
		}
		return w.close()
	}); err != nil {
		return fmt.Errorf("save %v: %w", v, err)
	}
	next := catalog{Floor: v, Keys: keys, Files: []catalogFile{{v, digest[:]}}}
	for _, f := range s.catalog.Files {
		if f.Version != v && len(next.Files) < kept {
			next.Files = append(next.Files, f)
		}
	}
	plain, err := json.Marshal(next)
	if err != nil {
		return err
	}
	sealed, err := s.sealer.Seal(plain, []byte(catalogAAD))
	if err != nil {
		return fmt.Errorf("seal the catalog: %w", err)
	}
	for _, name := range catalogNames {
		if err := s.write(name, func(f *os.File) error { _, err := f.Write(sealed); return err }); err != nil {
			return fmt.Errorf("save %v: %w", v, err)
		}
	}
	for _, f := range s.catalog.Files {
		if !slices.ContainsFunc(next.Files, func(n catalogFile) bool { return n.Version == f.Version }) {
			os.Remove(s.path(fileName(f.Version)))
		}
	}
	s.catalog = next
	return nil
}

// write replaces a file whole: after a crash there is the old one or the new one.
func (s *Store) write(name string, body func(*os.File) error) (err error) {
	tmp, err := os.CreateTemp(s.dir, name+".*.tmp") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	err = body(tmp)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), s.path(name)); err != nil {
		return err
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
