package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/zalando/skipper/dataclients/routestring"
	"github.com/zalando/skipper/filters/builtin"
	"github.com/zalando/skipper/proxy"
	"github.com/zalando/skipper/routing"
)

// runSkipper runs Skipper's engine with routes from a string, without access log
// and traces.
func runSkipper(ctx context.Context, s settings) error {
	var text strings.Builder
	if s.routes > 1 {
		for i := range s.routes {
			fmt.Fprintf(&text, "r%d: PathSubtree(%q) -> \"http://%s\";\n", i, strings.TrimSuffix(s.prefix(i), "/"), s.upstream)
		}
	} else {
		fmt.Fprintf(&text, "all: * -> \"http://%s\";\n", s.upstream)
	}
	source, err := routestring.New(text.String())
	if err != nil {
		return err
	}
	table := routing.New(routing.Options{
		FilterRegistry: builtin.MakeRegistry(), DataClients: []routing.DataClient{source}, PollTimeout: time.Hour, SignalFirstLoad: true,
	})
	defer table.Close()
	select {
	case <-table.FirstLoad():
	case <-ctx.Done():
		return ctx.Err()
	}
	engine := proxy.WithParams(proxy.Params{
		Routing: table, AccessLogDisabled: true, IdleConnectionsPerHost: idleConnections, MaxIdleConns: idleConnections,
		CloseIdleConnsPeriod: time.Minute,
	})
	defer func() { _ = engine.Close() }()
	return serve(ctx, s, engine)
}
