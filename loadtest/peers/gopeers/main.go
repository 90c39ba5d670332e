// Command gopeers is the gateways in Go that Portcullis is measured beside: the
// standard library's reverse proxy, Caddy and Skipper, each as small as it can be
// set up. It is a module of its own, so that what they depend on is nothing to
// the rest of the tree. It owns how each forwards to one upstream; who measures it
// is nothing to it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// settings are the command line.
type settings struct {
	listen, upstream string
	routes           int
	certificate, key string
}

// prefix is the path of route number i.
func (s settings) prefix(i int) string { return fmt.Sprintf("/svc/%d/", i) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		slog.Error("gopeers", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	kinds := map[string]func(context.Context, settings) error{"net-http": netHTTP, "caddy": runCaddy, "skipper": runSkipper}
	if len(args) == 0 || kinds[args[0]] == nil {
		return errors.New("usage: gopeers net-http|caddy|skipper -listen ADDRESS -upstream ADDRESS")
	}
	var s settings
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	flags.StringVar(&s.listen, "listen", "", "address for clients")
	flags.StringVar(&s.upstream, "upstream", "", "address of the upstream, in clear text")
	flags.IntVar(&s.routes, "routes", 1, "how many routes; 1 is one for every path")
	flags.StringVar(&s.certificate, "certificate", "", "PEM file; with it TLS 1.3 and HTTP/2")
	flags.StringVar(&s.key, "key", "", "PEM file")
	_ = flags.Parse(args[1:])
	return kinds[args[0]](ctx, s)
}

// netHTTP is what a Go program has without any gateway.
func netHTTP(ctx context.Context, s settings) error {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: s.upstream})
			r.SetXForwarded()
		},
		Transport: transport(),
	}
	return serve(ctx, s, proxy)
}

// idleConnections is more than any measurement uses at once.
const idleConnections = 1024

func transport() *http.Transport {
	return &http.Transport{MaxIdleConns: idleConnections, MaxIdleConnsPerHost: idleConnections, IdleConnTimeout: time.Minute, DisableCompression: true}
}

// serve serves a handler until ctx ends.
func serve(ctx context.Context, s settings, handler http.Handler) error {
	server := &http.Server{Addr: s.listen, Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	var err error
	if s.certificate != "" {
		err = server.ListenAndServeTLS(s.certificate, s.key)
	} else {
		err = server.ListenAndServe()
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
