package main

import (
	"context"
	"encoding/json"

	"github.com/caddyserver/caddy/v2"
	// Its modules register themselves.
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/caddytls"
)

// object is a JSON object of Caddy's configuration.
type object = map[string]any

// runCaddy runs Caddy without its admin endpoint, automatic HTTPS and access log.
func runCaddy(ctx context.Context, s settings) error {
	forward := []object{{
		"handler": "reverse_proxy", "upstreams": []object{{"dial": s.upstream}},
		"transport": object{"protocol": "http", "compression": false, "keep_alive": object{"max_idle_conns": idleConnections, "max_idle_conns_per_host": idleConnections}},
	}}
	routes := []object{}
	if s.routes > 1 {
		for i := range s.routes {
			routes = append(routes, object{"match": []object{{"path": []string{s.prefix(i) + "*"}}}, "handle": forward, "terminal": true})
		}
	} else {
		routes = append(routes, object{"handle": forward})
	}
	server := object{"listen": []string{s.listen}, "routes": routes, "automatic_https": object{"disable": true}}
	apps := object{"http": object{"servers": object{"in": server}}}
	if s.certificate != "" {
		server["tls_connection_policies"] = []object{{"protocol_min": "tls1.3", "alpn": []string{"h2"}}}
		apps["tls"] = object{"certificates": object{"load_files": []object{{"certificate": s.certificate, "key": s.key}}}}
	}
	config, err := json.Marshal(object{
		"admin": object{"disabled": true, "config": object{"persist": false}},
		"apps":  apps, "logging": object{"logs": object{"default": object{"level": "ERROR"}}},
	})
	if err != nil {
		return err
	}
	if err := caddy.Load(config, true); err != nil {
		return err
	}
	<-ctx.Done()
	return caddy.Stop()
}
