package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

func testRig(t *testing.T) *rig {
	dir := t.TempDir()
	signed, err := newTokens(dir, 3)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{dir: dir, tokens: signed, shapes: map[string]shape{}, upstream: &gateway{address: "127.0.0.1:9"}}
}

// Every configuration is complete in every set-up that its peer can do.
func TestConfigurations(t *testing.T) {
	r := testRig(t)
	sources := map[string][]string{"nginx": {"nginx.conf"}, "haproxy": {"haproxy.cfg", "routes.map"}, "nginx-lua": {"nginx.conf", "verify.lua"}, "envoy": {"envoy.yaml"}}
	for _, p := range peers() {
		for _, source := range sources[p.name] {
			for _, s := range p.setups {
				file, _, err := r.configure(p.name, source, s, "127.0.0.1:8", nil)
				if err != nil {
					t.Fatalf("%s, %s: %v", source, s, err)
				}
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(string(data), "no value") || len(data) == 0 {
					t.Errorf("%s, %s:\n%s", source, s, data)
				}
				if source != "haproxy.cfg" && s.routes() > 1 && strings.Count(string(data), "/svc/") < s.routes() {
					t.Errorf("%s, %s has too few routes", source, s)
				}
				var parsed any
				// Ten thousand routes parse no differently, but for seconds.
				if strings.HasSuffix(source, ".yaml") && s != setupMyriad {
					if err := yaml.Unmarshal(data, &parsed); err != nil {
						t.Errorf("%s, %s: %v", source, s, err)
					}
				}
			}
		}
	}
}

func TestTokens(t *testing.T) {
	r := testRig(t)
	if len(r.tokens.signed) != 3 || r.tokens.signed[0] == r.tokens.signed[1] || !json.Valid([]byte(r.tokens.jwks)) {
		t.Errorf("%+v", r.tokens)
	}
	header, _, _ := strings.Cut(r.tokens.forged, ".")
	if !strings.HasPrefix(r.tokens.signed[0], header+".") {
		t.Error("the forged token differs in more than its signature")
	}
}

func TestShapes(t *testing.T) {
	r := testRig(t)
	for _, s := range scenarios() {
		sent, err := r.shape(s)
		if err != nil {
			t.Fatal(err)
		}
		if sent.lines == "" {
			continue
		}
		data, err := os.ReadFile(sent.lines)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
		count := len(lines)
		slices.Sort(lines)
		if n := len(slices.Compact(lines)); n != sent.distinct || s.listed == 0 && n != count || s.listed > 0 && s.listed != count || count < 3 {
			t.Errorf("%s: %d lines, %d of them distinct, for %d", s.name, count, n, sent.distinct)
		}
	}
}
