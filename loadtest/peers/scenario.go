package main

import (
	"fmt"
	"slices"
)

// scenario is one column of the table: what is sent to a set-up.
type scenario struct {
	name, title string
	setup       setup
	path        string
	// token sends one caller's token; tokens those of many callers in turn.
	token, tokens bool
	h2            bool
	// listed sends its one request from a list of so many, as the scenarios with many
	// routes do: what the list costs the generator shows at the gateway, which wakes it.
	listed int
	// beside: it is measured in the groups of others only.
	beside bool
	// only these peers; nil: all that can do the set-up.
	only []string
}

// load scenarios measure processor time per request under full load; what idle
// connections hold and what a change does to latency is measured by itself.
const (
	idleScenario   = "idle"
	applyScenario  = "apply"
	largeScenario  = "1mb"
	listedScenario = "plain-listed"
)

func scenarios() []scenario {
	return []scenario{
		{name: "plain", title: "plain HTTP/1.1", setup: setupPlain, path: smallPath},
		{name: "10kb", title: "10 KB answer", setup: setupPlain, path: mediumPath, only: []string{"portcullis", "nginx", "haproxy", "envoy", "net-http"}},
		{name: largeScenario, title: "1 MB answer", setup: setupPlain, path: largePath, only: []string{"portcullis", "nginx", "haproxy", "envoy", "net-http"}},
		{name: listedScenario, title: "plain, sent from a list", setup: setupPlain, path: smallPath, listed: setupMyriad.routes(), beside: true, only: []string{"portcullis"}},
		{name: "routes-1k", title: "1,000 routes", setup: setupKilo, path: smallPath},
		{name: "routes-10k", title: "10,000 routes", setup: setupMyriad, path: smallPath},
		{name: "jwt", title: "JWT RS256, same token", setup: setupJWT, path: smallPath, token: true},
		{name: "jwt-10k", title: "JWT RS256, 10,000 tokens", setup: setupJWT, path: smallPath, tokens: true},
		{name: "jwt-limit", title: "JWT + limit (ours is the cluster's)", setup: setupLimit, path: smallPath, token: true},
		{name: "jwt-full", title: "JWT + revocation + scopes + cluster-wide limit + 1 % traces", setup: setupFull, path: smallPath, token: true},
		{name: "tls", title: "TLS 1.3 + HTTP/2", setup: setupTLS, path: smallPath, h2: true},
	}
}

// shape returns what the scenario sends; it writes down long lists once.
func (r *rig) shape(s scenario) (out shape, err error) {
	if have, ok := r.shapes[s.name]; ok {
		return have, nil
	}
	defer func() {
		if err == nil {
			r.shapes[s.name] = out
		}
	}()
	out = shape{path: s.setup.prefix(0) + s.path, bearer: s.token, h2: s.h2}
	switch {
	case s.tokens:
		out.distinct = len(r.tokens.signed)
		out.lines, err = r.list(s.name+".tsv", len(r.tokens.signed), func(i int) (string, string) { return out.path, r.tokens.signed[i] })
	case s.listed > 0:
		out.distinct = 1
		out.lines, err = r.list(s.name+".tsv", s.listed, func(int) (string, string) { return out.path, "" })
	case s.setup.routes() > 1:
		out.distinct = s.setup.routes()
		out.lines, err = r.list(s.name+".tsv", s.setup.routes(), func(i int) (string, string) { return s.setup.prefix(i) + s.path, "" })
	}
	return out, err
}

func (s scenario) asks(p peer) bool {
	return p.can(s.setup) && (s.only == nil || slices.Contains(s.only, p.name))
}

// goal is a target: a ratio of two cells' processor time per request, each round's
// within itself. Both are measured in one group.
type goal struct {
	figure, group string
	of, by        cellName
	// bound is 0 for what has no target: an instance beside another of the same
	// program, which shows what the run resolves.
	bound float64
}

// goals are the promises. They are written here and nowhere else.
func goals() []goal {
	var all []goal
	add := func(scenario, byScenario, byPeer string, bound float64) {
		figure := fmt.Sprintf("%s: of our own %s", scenario, byScenario)
		if byPeer != "portcullis" {
			figure = fmt.Sprintf("%s: of %s", scenario, byPeer)
		}
		all = append(all, goal{figure, scenario, cellName{scenario, "portcullis"}, cellName{byScenario, byPeer}, bound})
	}
	for _, peer := range []string{"portcullis", "nginx"} {
		figure := fmt.Sprintf("resolution, plain: %s of a second instance of it", peer)
		all = append(all, goal{figure, "plain", cellName{"plain", peer}, cellName{"plain", peer + twin}, 0})
	}
	add("plain", "plain", "nginx", 1.0)
	for _, peer := range []string{"net-http", "caddy", "skipper"} {
		add("plain", "plain", peer, 0.25)
	}
	add("10kb", "10kb", "nginx", 1.1)
	add(largeScenario, largeScenario, "nginx", 1.1)
	for _, many := range []string{"routes-1k", "routes-10k"} {
		add(many, listedScenario, "portcullis", 1.05)
		all = append(all, goal{many + ": plain, sent from a list, of plain", many, cellName{listedScenario, "portcullis"}, cellName{"plain", "portcullis"}, 0})
	}
	add("jwt", "plain", "portcullis", 1.15)
	add("jwt", "jwt", "haproxy", 0.35)
	add("jwt", "jwt", "nginx-lua", 0.9)
	add("jwt-10k", "jwt-10k", "haproxy", 0.4)
	add("jwt-10k", "jwt-10k", "nginx-lua", 0.95)
	add("jwt-full", "plain", "portcullis", 1.3)
	add("tls", "tls", "nginx", 1.0)
	add("tls", "tls", "net-http", 0.5)
	for _, s := range scenarios() {
		if !s.beside {
			add(s.name, s.name, "envoy", 0.8)
		}
	}
	return all
}
