package main

import (
	"context"
)

func startHAProxy(ctx context.Context, r *rig, s setup, address string) (*gateway, error) {
	if _, _, err := r.configure("haproxy", "routes.map", s, address, nil); err != nil {
		return nil, err
	}
	file, dir, err := r.configure("haproxy", "haproxy.cfg", s, address, nil)
	if err != nil {
		return nil, err
	}
	return r.run(ctx, s, address, command{name: "haproxy", dir: dir, args: []string{"haproxy", "-db", "-f", file}})
}
