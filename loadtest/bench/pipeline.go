package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/policy"
	"portcullis.dev/portcullis/dataplane/token"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// hotRoute has every kind of policy that runs on a request with a token.
const hotRoute = `
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: "http://127.0.0.1:9"}]}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: hot}
spec:
  policies:
    - jwt: {issuers: [bench], audiences: ["https://api.bench.example"]}
    - authorize: {rules: [{when: "request.method == 'GET'", scopes: ["orders:read"]}]}
    - rateLimit: {key: auth.client, limits: [{name: second, requests: 1000000, window: 1s}, {name: hour, requests: 900000000, window: 1h}]}
    - headers: {request: {set: {X-Env: prod}}, response: {remove: [Server]}}
  revocation: {maxStaleness: 60s}
  backends: [{upstream: up}]
`

// measurePipeline counts what one request allocates between Admit and Transform
// when its token has been seen before.
func measurePipeline(ctx context.Context) (readings []reading, err error) {
	r, err := newRig(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	pipeline, bearer, err := compileHot(r)
	if err != nil {
		return nil, err
	}
	r.deps.Freshness.Heard(revocation.Beat{Epoch: 1, Progress: 1}, time.Now())
	e := &exchange.Exchange{Context: ctx, Received: time.Now(), Route: exchange.RouteInfo{Workspace: config.DefaultWorkspace, Name: "hot"}}
	e.Request = exchange.Request{Method: "GET", Path: "/orders", Host: "api.bench.example", Scheme: "http"}
	e.Request.Header.Add("Authorization", "Bearer "+bearer)
	e.Request.Header.Add("X-Env", "theirs")
	var denied *policy.Denial
	run := func() {
		e.After = e.After[:0]
		if d := pipeline.Run(e); d != nil {
			denied = d
		}
	}
	const runs = 10_000
	n := allocations(runs, run)
	each, err := timePerCall(100_000, func(int) { run() })
	if denied != nil {
		err = errors.Join(err, fmt.Errorf("the request was refused: %s", denied.Reason))
	}
	return []reading{{n, fmt.Sprintf("jwt, authorize, 2 limits, headers; mean of %d requests; %s of processor time each", runs, printSeconds(each.Seconds()))}}, err
}

// compileHot compiles the route as a node does, and signs a token for it.
func compileHot(r *rig) (*policy.Pipeline, string, error) {
	s, err := newSigning()
	if err != nil {
		return nil, "", err
	}
	declared, err := decode(hotRoute)
	if err != nil {
		return nil, "", err
	}
	checked, err := config.Check(append(declared, s.resources...))
	if err != nil {
		return nil, "", err
	}
	issuer, err := token.Compile("default/bench", s.resources[0].GetIssuer(), s.resources[1].GetKeySet(), token.NewCache(token.CacheConfig{}))
	if err != nil {
		return nil, "", err
	}
	deps := r.deps
	deps.Issuer = func(string, string) (*token.Issuer, bool) { return issuer, true }
	deps.Application = func(string, string) (*configv1.Application, bool) { return nil, false }
	key := config.Key{Kind: config.KindRoute, Workspace: config.DefaultWorkspace, Name: "hot"}
	resource, ok := checked.Get(key)
	if !ok {
		return nil, "", errors.New("the route is not in the config")
	}
	pipeline, err := policy.CompileRoute(key, resource.GetRoute(), checked.Policies(key), deps)
	if err != nil {
		return nil, "", err
	}
	bearer, err := s.token("t-1")
	return pipeline, bearer, err
}
