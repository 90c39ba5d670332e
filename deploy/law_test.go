// Package deploy_test holds the tree to its import law.
package deploy_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "portcullis.dev/portcullis"

// layers are the arrows inward: a package may import its own layer's part and
// what stands behind it.
var layers = map[string]struct {
	may    []string
	reason string
}{
	"proto":        {[]string{"proto"}, "messages know nobody"},
	"pkg":          {[]string{"pkg", "proto"}, "what both planes use knows neither"},
	"controlplane": {[]string{"controlplane", "pkg", "proto"}, "a plane never imports the other: they share only messages"},
	"dataplane":    {[]string{"dataplane", "pkg", "proto"}, "a plane never imports the other: they share only messages"},
	"deploy":       {[]string{"deploy", "controlplane", "dataplane", "pkg", "proto"}, "wiring"},
	"loadtest":     {[]string{"loadtest", "deploy", "controlplane", "dataplane", "pkg", "proto"}, "measures everything"},
}

// rooms says which packages alone may import a library, and why.
var rooms = []struct {
	library string
	only    []string
	reason  string
}{
	{"go.etcd.io/", []string{"controlplane/store"}, "truth has one door"},
	{"github.com/nats-io/", []string{"pkg/bus"}, "a broker that is replaced touches one place"},
	{"go.opentelemetry.io/otel/sdk", []string{"pkg/telemetry"}, "others use the API"},
	{"go.opentelemetry.io/otel/exporters", []string{"pkg/telemetry"}, "others use the API"},
	{"github.com/lestrrat-go/jwx", []string{"controlplane/keys"}, "jwt.Parse must not see what a client sent"},
	{"github.com/mholt/acmez", []string{"controlplane/acme"}, "one owner of accounts and orders"},
	{"github.com/letsencrypt/pebble", []string{"controlplane/acme/acmetest"}, "an authority for tests"},
	{"golang.org/x/net/http2", []string{"dataplane/http2"}, "frames are read where their floods are counted"},
	{"cel.dev/", []string{"pkg/config/expr", "dataplane/policy"}, "Check and node compile the same expressions"},
}

// socketless packages decide without I/O.
var socketless = []string{"pkg/config", "pkg/httppath", "dataplane/route", "dataplane/token", "dataplane/policy", "dataplane/exchange"}

// topLevel is the whole of the tree's top, besides dot-files.
var topLevel = []string{"LICENSE", "Makefile", "README.md", "controlplane", "dataplane", "deploy", "go.mod", "go.sum", "loadtest", "pkg", "proto"}

type file struct {
	pkg, name string
	imports   []string
	test      bool
}

func parseTree(t *testing.T) []file {
	t.Helper()
	var files []file
	err := filepath.WalkDir("..", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if base := entry.Name(); base != ".." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "bin") {
				return fs.SkipDir
			}
			// A module of its own is nothing that this one imports or ships.
			if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil && name != ".." {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("..", name)
		if err != nil {
			return err
		}
		f := file{pkg: path.Dir(filepath.ToSlash(rel)), name: rel, test: strings.HasSuffix(name, "_test.go")}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, imported)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 100 {
		t.Fatalf("only %d files found: the law is not being applied to the tree", len(files))
	}
	return files
}

func within(pkg, room string) bool { return pkg == room || strings.HasPrefix(pkg, room+"/") }

// testOnly are packages that exist for tests and may import testing.
func testOnly(pkg string) bool {
	return strings.HasSuffix(pkg, "test") || within(pkg, "deploy/e2e")
}

func TestImportLaw(t *testing.T) {
	for _, f := range parseTree(t) {
		layer, _, _ := strings.Cut(f.pkg, "/")
		law, known := layers[layer]
		if !known {
			t.Errorf("%s: the folder %s is in no layer", f.name, layer)
			continue
		}
		for _, imported := range f.imports {
			own, ok := strings.CutPrefix(imported, module+"/")
			if ok {
				to, _, _ := strings.Cut(own, "/")
				if !slices.Contains(law.may, to) {
					t.Errorf("%s imports %s: %s may import %v only: %s", f.name, imported, layer, law.may, law.reason)
				}
				continue
			}
			for _, room := range rooms {
				if strings.HasPrefix(imported, room.library) && !f.test && !testOnly(f.pkg) &&
					!slices.ContainsFunc(room.only, func(only string) bool { return within(f.pkg, only) }) {
					t.Errorf("%s imports %s, which belongs to %v: %s", f.name, imported, room.only, room.reason)
				}
			}
			if imported == "testing" && !f.test && !testOnly(f.pkg) {
				t.Errorf("%s imports testing: nothing shipped does", f.name)
			}
			if (imported == "net" || imported == "net/http") && !f.test && slices.Contains(socketless, f.pkg) {
				t.Errorf("%s imports %s: %s opens no sockets", f.name, imported, f.pkg)
			}
		}
	}
}

func TestTopLevelIsAsDesigned(t *testing.T) {
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		name := entry.Name()
		// What .gitignore names is not part of the tree.
		if strings.HasPrefix(name, ".") || name == "bin" || name == "portcullis-data" {
			continue
		}
		if !slices.Contains(topLevel, name) {
			t.Errorf("the top level has %s: it stays exactly %v", name, topLevel)
		}
	}
}

func TestNoInitFunctions(t *testing.T) {
	for _, f := range parseTree(t) {
		if f.test || strings.HasSuffix(f.name, ".pb.go") || strings.HasSuffix(f.name, ".pb.gw.go") {
			continue
		}
		source, err := os.ReadFile(filepath.Join("..", f.name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(source), "\nfunc init()") {
			t.Errorf("%s has an init function: order is data, in one place", f.name)
		}
	}
}
