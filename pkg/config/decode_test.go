package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

// TestMistakes decodes and checks every testdata/mistakes/*.yaml and compares
// what is said about it. A file holds one mistake or one family of them.
func TestMistakes(t *testing.T) {
	files, err := filepath.Glob("testdata/mistakes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	base := decode(t, `
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: http://127.0.0.1:1}]}
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: local}
spec: {issuer: local, builtIn: true}
`)
	checked, err := Check(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			said := complaints(checked, name+".yaml", data)
			if said == "" {
				t.Fatal("a mistake was accepted")
			}
			golden(t, "mistakes/"+name+".txt", said)
		})
	}
}

// complaints returns what Decode, or else Apply says, with places.
func complaints(c Checked, name string, data []byte) string {
	docs, err := Decode(name, data)
	if err == nil {
		d := Delta{}
		for _, doc := range docs {
			d.Upserts = append(d.Upserts, doc.Resource)
		}
		_, _, err = c.Apply(d)
		err = Locate(docs, err)
	}
	if err == nil {
		return ""
	}
	var problems Problems
	if !errors.As(err, &problems) {
		return "no Problems: " + err.Error()
	}
	return problems.Error() + "\n"
}

func TestHostileDocuments(t *testing.T) {
	head := "apiVersion: portcullis.dev/v1\nkind: Workspace\nmetadata: {name: a}\n"
	bomb := head + "spec:\n  description: &a [x,x,x,x,x,x,x,x,x]\n"
	for i := 'b'; i < 'k'; i++ {
		bomb += fmt.Sprintf("  %c: &%c [%s]\n", i, i, strings.Repeat(fmt.Sprintf("*%c,", i-1), 9))
	}
	for name, c := range map[string]struct{ data, want string }{
		"alias bomb":         {bomb, "anchors (&a) are not accepted"},
		"3 MB document":      {head + "spec: {description: " + strings.Repeat("x", 3<<20) + "}\n", "hostile.yaml:1:1: document is 3145"},
		"3 MB in the second": {head + "---\n" + strings.Repeat("# x\n", 800_000), "hostile.yaml:4:1: document is 32"},
		"65 MB stream":       {strings.Repeat("---\n", 17<<20), "in one file"},
		"deep flow":          {strings.Repeat("[", 900_000), "depth"},
		"deep flow mapping":  {strings.Repeat("{a: ", 200_000), "depth"},
		"deep block":         {strings.Repeat("- ", 400_000) + "a", "depth"},
		"not UTF-8":          {head + "# \xff\n", "hostile.yaml:4:3: is not UTF-8"},
		"UTF-16":             {"\xff\xfea\x00", "hostile.yaml:1:1: is not UTF-8"},
		"hidden line":        {head + "# comment\u2028spec: {description: x}\n", "hostile.yaml:4:10: has U+2028"},
		"lone CR":            {head + "# a\rspec: {}\n", "hostile.yaml:4:4: has U+000D"},
		"direction":          {head + "# \u202e x\n", "hides what the text says"},
		"NUL":                {head + "spec: {description: \"a\x00b\"}\n", "not YAML"},
		"many problems":      {head + "spec:\n" + strings.Repeat("  x: 1\n", 10_000), "unknown field"},
		"huge field name":    {head + "spec: {" + strings.Repeat("x", 100_000) + ": 1}\n", "unknown field"},
		"merge key":          {head + "spec: {<<: {description: x}}\n", "expected a field name"},
		"two roots":          {"{a: 1}\n{b: 2}\n", "not YAML"},
		"directive":          {"%YAML 9.9\n---\n" + head, "not YAML"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			docs, err := Decode("hostile.yaml", []byte(c.data))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %d documents, %.300v; want %q", len(docs), err, c.want)
			}
			if len(err.Error()) > 64<<10 {
				t.Errorf("the error is %d bytes long", len(err.Error()))
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestDecodeStream(t *testing.T) {
	docs, err := Decode("s.yaml", []byte("\ufeff# only a comment\n---\n---\n"+
		`{"apiVersion": "portcullis.dev/v1", "kind": "Application", "metadata": {"name": "a"}}`+
		"\n---\r\napiVersion: portcullis.dev/v1\r\nkind: Application\r\nmetadata:\r\n  name: b\r\n---\n"+
		"apiVersion: portcullis.dev/v1\nkind: Workspace\nmetadata: {name: w}\nspec:\n  description: |\n    a\n     --- b\n...\n"))
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, d := range docs {
		keys = append(keys, KeyOf(d.Resource).String())
	}
	if got := strings.Join(keys, ", "); got != "Application default/a, Application default/b, Workspace w" {
		t.Error(got)
	}
	if got := docs[2].Resource.GetWorkspace().GetDescription(); got != "a\n --- b\n" {
		t.Errorf("%q", got)
	}
	if docs[0].Resource.GetMetadata().GetWorkspace() != DefaultWorkspace || docs[2].Resource.GetMetadata().GetWorkspace() != "" {
		t.Error("a workspace left out is the default one, except for a Workspace")
	}
}

func TestLocate(t *testing.T) {
	docs, err := Decode("f.yaml", []byte(shop))
	if err != nil {
		t.Fatal(err)
	}
	route := docs[len(docs)-1]
	lines := strings.Split(shop, "\n")
	for path, want := range map[string]string{
		"spec.policies[0].jwt.issuers[0]":               "local]",
		"spec.policies[1].authorize.rules[1].scopes[0]": "orders:write]",
		"spec.backends[1].upstream":                     "orders-canary, weight: 10",
		"spec.backends[1].nothing.below":                "{upstream: orders-canary",
		"spec.matches[0].methods[1]":                    "POST]}]",
		"metadata.name":                                 "orders}",
		"spec.policies[99]":                             "- jwt:",
		"spec.policies[2].rateLimit.limits[1].requests": "5000",
	} {
		p := &Problem{Path: path}
		route.Locate(p)
		if p.File != "f.yaml" || p.Line == 0 || !strings.HasPrefix(lines[p.Line-1][p.Column-1:], want) {
			t.Errorf("%s: %s:%d:%d", path, p.File, p.Line, p.Column)
		}
	}
}

func TestEncodeRoundTrip(t *testing.T) {
	rs := decode(t, shop+everything)
	var first bytes.Buffer
	if err := EncodeYAML(&first, rs...); err != nil {
		t.Fatal(err)
	}
	back := decode(t, first.String())
	if len(back) != len(rs) {
		t.Fatalf("%d resources; want %d", len(back), len(rs))
	}
	for i := range rs {
		if !proto.Equal(rs[i], back[i]) {
			t.Errorf("%s differs:\n%v\n%v", KeyOf(rs[i]), rs[i], back[i])
		}
	}
	golden(t, "encoded.yaml", first.String())
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s": 0, "1s": time.Second, "250ms": 250 * time.Millisecond, "1h": time.Hour, "1d": 24 * time.Hour,
		"1m": time.Minute, "1m30s": 90 * time.Second, "1h30m": 90 * time.Minute, "31d": 31 * 24 * time.Hour,
		"25h": 25 * time.Hour, "1h0.5s": time.Hour + 500*time.Millisecond, "10m": 10 * time.Minute, "1h10m0.25s": 70*time.Minute + 250*time.Millisecond,
	} {
		got, err := ParseDuration(text)
		if err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v", text, got, err)
		}
		if back, err := ParseDuration(FormatDuration(want)); err != nil || back != want {
			t.Errorf("FormatDuration(%v) = %q", want, FormatDuration(want))
		}
	}
	if got, _ := ParseDuration("1d12h"); got != 36*time.Hour {
		t.Error(got)
	}
	for _, text := range []string{"", "0", "1", "-1s", "+1s", "s", "1 s", "1x", "d", "1d-1h", "1.5d", "1d1d", "200000d", "106751d24h", "9223372036854775808ns", "1dd", "1d0"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("ParseDuration(%q) = %v; want an error", text, got)
		}
	}
}
