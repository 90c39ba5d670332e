package main

import (
	"context"
	"encoding/json"
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

// applied is what one apply came to.
type applied struct {
	Ended time.Time     `json:"ended"`
	Took  time.Duration `json:"took_ns"`
}

// reapply applies all routes of the set-up with 10,000 every second until ctx
// ends, and prints a line for each; an apply that takes longer delays the next.
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
	lines := json.NewEncoder(out)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for count := 0; ; count++ {
		for i := range changedEach {
			routes[(count*changedEach+i)%len(routes)].GetRoute().Priority = int32(time.Now().UnixMicro() % 1_000_000_000)
		}
		took, err := o.apply(ctx, routes)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := lines.Encode(applied{time.Now(), took}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
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
