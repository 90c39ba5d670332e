package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// changedEach is how many of the routes each apply changes; all are sent.
const changedEach = 100

// applying measures the p99 at half of saturation while all routes are applied
// every second, as a multiple of the p99 without.
func (m *run) applying(ctx context.Context) reading {
	r := reading{figure: "p99 at half of saturation, 10,000 routes applied every second: of undisturbed"}
	for _, p := range m.peers {
		if p.name == "portcullis" {
			r.value, r.note, r.err = m.applyingTo(ctx, p)
			say("%s: %.2f %s %v", r.figure, r.value, r.note, r.err)
			return r
		}
	}
	r.err = errors.New("portcullis: " + m.absent["portcullis"])
	return r
}

func (m *run) applyingTo(ctx context.Context, p peer) (ratio float64, note string, err error) {
	g, err := m.rig.gateway(ctx, p, setupMyriad)
	if err != nil {
		return 0, "", err
	}
	path := setupMyriad.prefix(0) + smallPath
	full, err := m.rig.send(ctx, g.address, shape{path: path}, m.rig.options.duration)
	if err != nil {
		return 0, "", err
	}
	lasts := 2 * m.rig.options.duration
	calm, err := m.paced(ctx, g.address, path, full.rate/2, lasts)
	if err != nil {
		return 0, "", err
	}
	finish, err := m.reapplying(g.cluster)
	if err != nil {
		return 0, "", err
	}
	disturbed, err := m.paced(ctx, g.address, path, full.rate/2, lasts)
	done, failed := finish()
	if err := errors.Join(err, failed); err != nil {
		return 0, "", err
	}
	note = fmt.Sprintf("%.0f requests/s, p99 %v undisturbed, %v disturbed; %d applies, %d routes changed by each, slowest until enforced %v", full.rate/2,
		calm.P99.Round(time.Microsecond), disturbed.P99.Round(time.Microsecond), done.Count, changedEach, done.Slowest.Round(time.Millisecond))
	return float64(disturbed.P99) / float64(calm.P99), note, nil
}

// paced runs the open-loop sender as a process of its own.
func (m *run) paced(ctx context.Context, address, path string, rate float64, lasts time.Duration) (out paced, err error) {
	self, err := os.Executable()
	if err != nil {
		return out, err
	}
	text, err := m.rig.tool(ctx, self, "pace", "-address", address, "-path", path, "-rate", fmt.Sprint(rate),
		"-connections", fmt.Sprint(m.rig.options.connections), "-duration", lasts.String())
	if err != nil {
		return out, err
	}
	return out, json.Unmarshal([]byte(text), &out)
}

// operator changes a cluster's configuration.
type operator struct {
	conn   *grpc.ClientConn
	client adminv1.AdminServiceClient
}

// bearer sends the first operator's credential with each call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// dialOperator connects as the context file of a control plane says.
func dialOperator(dir string) (*operator, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cp", "context.yaml"))
	if err != nil {
		return nil, err
	}
	var file struct{ Address, CA, Credential string }
	if err := yaml.Unmarshal(data, &file); err != nil {
		return nil, err
	}
	secure, err := identity.ClientAdmin([]byte(file.CA))
	if err != nil {
		return nil, err
	}
	const most = 64 << 20
	conn, err := grpc.NewClient("passthrough:///"+file.Address, grpc.WithTransportCredentials(credentials.NewTLS(secure)),
		grpc.WithPerRPCCredentials(bearer(file.Credential)), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(most), grpc.MaxCallRecvMsgSize(most)))
	if err != nil {
		return nil, err
	}
	return &operator{conn, adminv1.NewAdminServiceClient(conn)}, nil
}

func (o *operator) close() { _ = o.conn.Close() }

// applies is what a series of applies came to.
type applies struct {
	Count   int           `json:"count"`
	Slowest time.Duration `json:"slowest_ns"`
}

// reapplying starts an operator who applies all routes every second, as a process
// that yields to load and upstream: they share its processor, and their delay
// would be taken for the gateway's. The returned function ends it.
func (m *run) reapplying(c *portcullis) (finish func() (applies, error), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := launch(command{name: "reapply", args: []string{"nice", "-n", "19", self, "reapply", "-dir", c.dir}, cpus: m.rig.options.loadCPUs})
	if err != nil {
		return nil, err
	}
	return func() (done applies, err error) {
		p.stop()
		if err := json.Unmarshal([]byte(p.said.String()), &done); err != nil {
			return done, fmt.Errorf("reapply: %s", &p.said)
		}
		return done, nil
	}, nil
}

// reapply applies all routes of the set-up with 10,000 every second until ctx
// ends, and prints what that came to; an apply that takes longer delays the next.
func reapply(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("reapply", flag.ContinueOnError)
	dir := flags.String("dir", "", "folder of the cluster")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o, err := dialOperator(*dir)
	if err != nil {
		return err
	}
	defer o.close()
	routes := make([]*configv1.Resource, setupMyriad.routes())
	for i := range routes {
		routes[i] = myriadRoute(i)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for done := (applies{}); ; {
		for i := range changedEach {
			routes[(done.Count*changedEach+i)%len(routes)].GetRoute().Priority = int32(time.Now().UnixMicro() % 1_000_000_000)
		}
		took, err := o.apply(ctx, routes)
		switch {
		case ctx.Err() != nil:
			return json.NewEncoder(out).Encode(done)
		case err != nil:
			return err
		}
		done.Count++
		done.Slowest = max(done.Slowest, took)
		select {
		case <-ctx.Done():
			return json.NewEncoder(out).Encode(done)
		case <-tick.C:
		}
	}
}

// apply applies resources and returns after how long every node ran them.
func (o *operator) apply(ctx context.Context, resources []*configv1.Resource) (time.Duration, error) {
	began := time.Now()
	resp, err := o.client.Apply(ctx, &adminv1.ApplyRequest{
		Change: &adminv1.Change{Upserts: resources}, Reason: "peers", WaitFor: durationpb.New(10 * time.Second),
	})
	if err != nil {
		return 0, err
	}
	if !resp.GetConvergence().GetConverged() {
		return 0, fmt.Errorf("not converged: %v", resp.GetConvergence().GetBehind())
	}
	return time.Since(began), nil
}

// myriadRoute is route number i as the set-up's YAML has it.
func myriadRoute(i int) *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: config.DefaultWorkspace, Name: fmt.Sprint("route-", i)},
		Spec: &configv1.Resource_Route{Route: &configv1.Route{
			Public:   true,
			Matches:  []*configv1.Match{{Path: &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: setupMyriad.prefix(i)}}}},
			Backends: []*configv1.Backend{{Upstream: "up"}},
		}},
	}
}
