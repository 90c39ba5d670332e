package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	o, err := dialOperator(g.cluster.dir)
	if err != nil {
		return 0, "", err
	}
	defer o.close()
	lasts := 2 * m.rig.options.duration
	calm, err := m.paced(ctx, g.address, path, full.rate/2, lasts)
	if err != nil {
		return 0, "", err
	}
	applied, stop := make(chan applies, 1), make(chan struct{})
	go func() { applied <- o.repeat(ctx, stop) }()
	disturbed, err := m.paced(ctx, g.address, path, full.rate/2, lasts)
	close(stop)
	done := <-applied
	if err := errors.Join(err, done.err); err != nil {
		return 0, "", err
	}
	note = fmt.Sprintf("%.0f requests/s, p99 %v undisturbed, %v disturbed; %d applies, %d routes changed by each, slowest until enforced %v", full.rate/2,
		calm.P99.Round(time.Microsecond), disturbed.P99.Round(time.Microsecond), done.count, changedEach, done.slowest.Round(time.Millisecond))
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
	count   int
	slowest time.Duration
	err     error
}

// repeat applies all routes every second until stop is closed; an apply that takes
// longer delays the next.
func (o *operator) repeat(ctx context.Context, stop <-chan struct{}) (done applies) {
	routes := make([]*configv1.Resource, setupMyriad.routes())
	for i := range routes {
		routes[i] = myriadRoute(i)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		for i := range changedEach {
			spec := routes[(done.count*changedEach+i)%len(routes)].GetRoute()
			spec.Priority++
		}
		began := time.Now()
		resp, err := o.client.Apply(ctx, &adminv1.ApplyRequest{
			Change: &adminv1.Change{Upserts: routes}, Reason: "peers", WaitFor: durationpb.New(10 * time.Second),
		})
		if err == nil && !resp.GetConvergence().GetConverged() {
			err = fmt.Errorf("not converged: %v", resp.GetConvergence().GetBehind())
		}
		if err != nil {
			done.err = err
			return done
		}
		done.count++
		done.slowest = max(done.slowest, time.Since(began))
		select {
		case <-stop:
			return done
		case <-tick.C:
		}
	}
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
