package policy

import (
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden runs each archive of testdata: a configuration, requests, and what
// became of them. Requests are separated by blank lines; a line that starts with
// "!" changes the world instead. {jwt JSON} stands for a token with changed
// claims, {key NAME WORKSPACE/APPLICATION SCOPES EXPIRES} for an API key.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t, string(archive.Files[0].Data))
			var out strings.Builder
			for _, block := range strings.Split(strings.TrimSpace(string(archive.Files[1].Data)), "\n\n") {
				fmt.Fprintf(&out, "%s\n%s\n", block, w.play(block))
			}
			if *update {
				archive.Files[2].Data = []byte(out.String())
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, got := strings.Split(string(archive.Files[2].Data), "\n"), strings.Split(out.String(), "\n")
			for i := range max(len(want), len(got)) {
				a, b := at(want, i), at(got, i)
				if a != b {
					t.Fatalf("answers line %d:\n got %s\nwant %s\n(rewrite with -update)", i+1, b, a)
				}
			}
		})
	}
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(end)"
}

// TestGoldenForEveryKind fails when a kind of policy lacks its golden file.
func TestGoldenForEveryKind(t *testing.T) {
	fields := (&configv1.Policy{}).ProtoReflect().Descriptor().Oneofs().ByName("kind").Fields()
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		if name == "ref" {
			continue // resolved before a policy is compiled
		}
		if _, err := os.Stat("testdata/" + name + ".txtar"); err != nil {
			t.Errorf("%s has no golden file: %v", name, err)
		}
	}
}

// play runs one block and describes what became of it.
func (w *world) play(block string) string {
	lines := strings.Split(block, "\n")
	if words := strings.Fields(lines[0]); words[0] == "!" {
		w.change(words[1:])
		return ""
	}
	method, path, _ := strings.Cut(lines[0], " ")
	var fields []string
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		fields = append(fields, name, w.expand(value))
	}
	e := w.request(method, path, fields...)
	d := w.pipeline.Run(e)
	if d == nil {
		response := &exchange.Response{Status: 200, Header: exchange.HeaderOf(exchange.Field{Name: "Server", Value: "up"})}
		e.Answer(response)
		return "< passed as " + describe(&e.Identity) + "\n" + headerLines("^ ", &e.Request.Header, "Authorization") + headerLines("< ", &response.Header)
	}
	response := d.Response("r-1", "")
	e.Answer(response)
	var p problem
	if err := json.Unmarshal([]byte(body(w.t, response)), &p); err != nil {
		w.t.Fatal(err)
	}
	out := fmt.Sprintf("< %d %s: %s\n", response.Status, p.Reason, p.Detail)
	out += headerLines("< ", &response.Header, "Content-Type", "Cache-Control")
	return out + fmt.Sprintf("  why: %s | %s | %s\n", e.Why.Policy, e.Why.Rule, e.Why.Detail)
}

func describe(id *exchange.Identity) string {
	if id.Method == "" {
		return "anonymous"
	}
	return fmt.Sprintf("%s subject=%s client=%s issuer=%s scopes=%v roles=%v groups=%v", id.Method, id.Subject, id.Client, id.Issuer, id.Scopes, id.Roles, id.Groups)
}

func headerLines(prefix string, h *exchange.Header, without ...string) string {
	var out strings.Builder
	for _, f := range h.Fields() {
		if !slices.ContainsFunc(without, func(name string) bool { return exchange.EqualFold(name, f.Name) }) {
			fmt.Fprintf(&out, "%s%s: %s\n", prefix, f.Name, f.Value)
		}
	}
	return out.String()
}

func (w *world) change(words []string) {
	switch words[0] {
	case "advance":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			w.t.Fatal(err)
		}
		w.now = w.now.Add(d)
	case "heartbeat":
		w.deps.Freshness.Heard(revocation.Beat{Epoch: 1, Progress: w.now.Unix()}, w.now)
	case "revoke":
		kind := controlv1.RevocationKind(controlv1.RevocationKind_value["REVOCATION_KIND_"+words[1]])
		value := words[2]
		if kind == controlv1.RevocationKind_REVOCATION_KIND_CREDENTIAL {
			sum, ok := credential.Parse(w.keys[value])
			if !ok {
				w.t.Fatalf("no key is named %q yet", value)
			}
			value = hex.EncodeToString(sum[:])
		}
		w.revoke(kind, "", value, w.now.Unix())
	case "disable":
		w.disabled[words[1]] = true
	default:
		w.t.Fatalf("unknown change %q", words)
	}
}

// expand replaces the placeholders of a header value.
func (w *world) expand(value string) string {
	open := strings.IndexByte(value, '{')
	if open < 0 {
		return value
	}
	end := strings.LastIndexByte(value, '}')
	kind, rest, _ := strings.Cut(value[open+1:end], " ")
	switch kind {
	case "jwt":
		changes := map[string]any{}
		if rest != "" {
			d := json.NewDecoder(strings.NewReader(rest))
			d.UseNumber()
			if err := d.Decode(&changes); err != nil {
				w.t.Fatalf("%s: %v", value, err)
			}
		}
		return value[:open] + mint(changes) + value[end+1:]
	case "key":
		words := append(strings.Fields(rest), "", "", "")
		var expires int64
		if words[3] != "" {
			d, err := time.ParseDuration(words[3])
			if err != nil {
				w.t.Fatal(err)
			}
			expires = noon.Add(d).Unix()
		}
		return value[:open] + w.key(words[0], words[1], strings.Trim(words[2], "-"), expires) + value[end+1:]
	}
	w.t.Fatalf("unknown placeholder %q", value)
	return ""
}
