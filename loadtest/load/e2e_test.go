package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// everything has each part of a scenario, shortly, against a cluster that is
// started for it.
const everything = `
description: all of it
nodes: 2
warm: 500ms
stages: [{for: 2500ms, rate: 100, to: 200}]
upstream: {delay: 1ms, bytes: 10}
config: |
  apiVersion: portcullis.dev/v1
  kind: Upstream
  metadata: {name: load}
  spec: {endpoints: [{url: "${upstream}"}]}
  ---
  apiVersion: portcullis.dev/v1
  kind: Route
  metadata: {name: jwt}
  spec:
    matches: [{path: {prefix: /jwt}}]
    policies: [{jwt: {issuers: [local], audiences: ["https://api.load.example"]}}]
    revocation: {maxStaleness: 5s, onStale: deny}
    backends: [{upstream: load}]
  ---
  apiVersion: portcullis.dev/v1
  kind: Route
  metadata: {name: limited}
  spec:
    public: true
    matches: [{path: {prefix: /limited}}]
    policies: [{rateLimit: {key: "'all'", limits: [{name: load, requests: 20, window: 1s, burst: 5}]}}]
    backends: [{upstream: load}]
requests:
  - {path: /jwt, token: {count: 5, audiences: ["https://api.load.example"]}}
  - {path: /limited, expect: [200, 429]}
disturb:
  after: 1s
  reload: {every: 300ms, routes: 20, changed: 5}
  revoke: {every: 300ms, path: /jwt, token: {audiences: ["https://api.load.example"]}}
limit: {rate: 20, burst: 5}
budgets:
  max: 20s
  errors: 0
  configPropagation: {p99: 20s}
  revocationPropagation: {p99: 20s}
  limitWorst: 20
`

func TestRunsAScenarioAgainstAClusterOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("everything", everything)
	write("broken", strings.Replace(everything, "max: 20s", "max: 1ns", 1))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out, told bytes.Buffer
	if err := run(ctx, []string{"-scenarios", dir, "-out", dir, "everything"}, &out, &told); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out.String(), told.String())
	}
	data, err := os.ReadFile(filepath.Join(dir, "everything.json"))
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Summary Summary  `json:"summary"`
		Seconds []Second `json:"seconds"`
	}
	if err := json.Unmarshal(data, &report); err != nil {
		t.Fatal(err)
	}
	sum := report.Summary
	if sum.Offered < 250 || sum.Errors > 0 || sum.Statuses[200] == 0 || sum.Statuses[429] == 0 || sum.Config.Count == 0 || sum.Revocation.Count == 0 || sum.Limiter.Admitted == 0 {
		t.Errorf("%s", data)
	}
	if !strings.Contains(told.String(), "answered") {
		t.Errorf("no progress was shown: %q", told.String())
	}
	out.Reset()
	err = run(ctx, []string{"-scenarios", dir, "-out", dir, "-time", "0.5", "broken"}, &out, &told)
	if !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "max") || strings.Contains(err.Error(), "errors") || !strings.Contains(out.String(), "BROKEN") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
