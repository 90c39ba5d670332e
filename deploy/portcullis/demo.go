package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"text/template"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// demoConfig is the sample configuration; {{.Orders}} and {{.Reports}} are the
// demo upstreams' addresses.
//
//go:embed demo.yaml
var demoConfig string

// startDemo starts two upstreams that tell what reached them, and applies the
// sample configuration when the cluster has no routes yet.
func startDemo(ctx context.Context, c *cluster.Cluster, contextPath string) (stop func(), err error) {
	var servers []*http.Server
	var running sync.WaitGroup
	stop = func() {
		for _, s := range servers {
			_ = s.Close()
		}
		running.Wait()
	}
	addresses := map[string]string{}
	for _, name := range []string{"Orders", "Reports"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			stop()
			return nil, err
		}
		server := &http.Server{Handler: echo(strings.ToLower(name)), ReadHeaderTimeout: 5 * time.Second}
		servers = append(servers, server)
		addresses[name] = listener.Addr().String()
		running.Go(func() { _ = server.Serve(listener) })
	}
	if err := applyDemo(ctx, contextPath, addresses); err != nil {
		stop()
		return nil, fmt.Errorf("demo: %w", err)
	}
	if err := c.Converge(ctx); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

func applyDemo(ctx context.Context, contextPath string, addresses map[string]string) error {
	client, closeClient, err := (&cli{contextFile: contextPath}).dial()
	if err != nil {
		return err
	}
	defer closeClient()
	var text bytes.Buffer
	if err := template.Must(template.New("demo").Parse(demoConfig)).Execute(&text, addresses); err != nil {
		return err
	}
	docs, err := config.Decode("demo.yaml", text.Bytes())
	if err != nil {
		return err
	}
	routes, err := client.List(ctx, &adminv1.ListRequest{Kind: config.KindRoute})
	if err != nil {
		return err
	}
	change := changeOf(docs)
	if len(routes.Resources) > 0 {
		// Not the first start: only the upstreams' addresses are new.
		change.Upserts = nil
		for _, doc := range docs {
			if config.KeyOf(doc.Resource).Kind == config.KindUpstream {
				change.Upserts = append(change.Upserts, doc.Resource)
			}
		}
	}
	_, err = client.Apply(ctx, &adminv1.ApplyRequest{Change: change, Reason: "demo", WaitFor: durationpb.New(30 * time.Second)})
	return err
}

// echo answers with what reached it, as JSON.
func echo(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
		if err != nil && !errors.Is(err, io.EOF) {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		headers := map[string]string{}
		for field, values := range r.Header {
			// A demo shows what the gateway adds, not what it was trusted with.
			if field != "Authorization" {
				headers[field] = strings.Join(values, ", ")
			}
		}
		w.Header().Set("Content-Type", "application/json")
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		_ = encoder.Encode(map[string]any{
			"upstream": name, "method": r.Method, "path": r.URL.RequestURI(), "headers": headers, "body": string(body),
		})
	})
}
