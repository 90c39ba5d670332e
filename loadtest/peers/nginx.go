package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// needs says that a program comes from a Debian package.
func needs(program, pkg string) func(context.Context, *rig) error {
	return func(context.Context, *rig) error {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed: apt-get install %s", program, pkg)
		}
		return nil
	}
}

// Where Debian puts nginx's modules.
const (
	luaModule = "/usr/lib/nginx/modules/ngx_http_lua_module.so"
	ndkModule = "/usr/lib/nginx/modules/ndk_http_module.so"
)

func needsLua(ctx context.Context, r *rig) error {
	if err := needs("nginx", "nginx")(ctx, r); err != nil {
		return err
	}
	for _, module := range []string{luaModule, ndkModule} {
		if _, err := os.Stat(module); err != nil {
			return fmt.Errorf("nginx has no Lua: %w: apt-get install libnginx-mod-http-lua", err)
		}
	}
	return nil
}

func startNginx(name string) func(context.Context, *rig, setup, string) (*gateway, error) {
	return func(ctx context.Context, r *rig, s setup, address string) (*gateway, error) {
		file, dir, err := r.configure(name, "nginx.conf", s, address, nil)
		if err != nil {
			return nil, err
		}
		return r.run(ctx, s, address, command{name: name, dir: dir, args: []string{"nginx", "-p", dir, "-c", file, "-e", dir + "/error.log"}})
	}
}

func startNginxLua(ctx context.Context, r *rig, s setup, address string) (*gateway, error) {
	if _, _, err := r.configure("nginx-lua", "verify.lua", s, address, nil); err != nil {
		return nil, err
	}
	file, dir, err := r.configure("nginx-lua", "nginx.conf", s, address, func(v *view) { v.Lua, v.NDK = luaModule, ndkModule })
	if err != nil {
		return nil, err
	}
	return r.run(ctx, s, address, command{name: "nginx-lua", dir: dir, args: []string{"nginx", "-p", dir, "-c", file, "-e", dir + "/error.log"}})
}
