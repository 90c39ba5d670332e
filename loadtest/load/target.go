package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// where says what cluster a scenario is run against.
type where struct {
	// addresses of nodes, as URLs; none: a cluster is started in this process.
	addresses []string
	// context is the file that `portcullis` uses too; needed, with addresses, for
	// what asks the admin API.
	context string
	// upstream is the URL that the nodes reach; empty: one is served in this process.
	upstream string
}

// target is a running cluster.
type target struct {
	bases    []string
	upstream string
	// inProcess says that load and cluster share this process, and its processors.
	inProcess bool

	admin   adminv1.AdminServiceClient
	cleanup []func() error
}

// converge bounds the wait for the nodes to run what was applied.
const converge = 60 * time.Second

// newTarget starts what is not there yet and applies the scenario's documents.
func newTarget(ctx context.Context, w where, s *Scenario) (t *target, err error) {
	t = &target{bases: w.addresses, upstream: w.upstream}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if t.upstream == "" {
		if err := t.serveUpstream(s.Upstream); err != nil {
			return nil, err
		}
	}
	switch {
	case len(w.addresses) == 0:
		err = t.start(ctx, s.Nodes)
	case w.context != "":
		err = t.useContext(w.context)
	}
	if err != nil || s.Config == "" {
		return t, err
	}
	docs, err := config.Decode(s.Name+".yaml config", []byte(strings.ReplaceAll(s.Config, "${upstream}", t.upstream)))
	if err != nil {
		return nil, err
	}
	change := &adminv1.Change{}
	for _, doc := range docs {
		change.Upserts = append(change.Upserts, doc.Resource)
	}
	_, err = t.apply(ctx, change)
	return t, err
}

// start starts a cluster in this process.
func (t *target) start(ctx context.Context, nodes int) error {
	dir, err := os.MkdirTemp("", "portcullis-load-")
	if err != nil {
		return err
	}
	t.cleanup = append(t.cleanup, func() error { return os.RemoveAll(dir) })
	c, err := cluster.Start(ctx, cluster.Config{Dir: dir, Nodes: nodes, Drain: time.Second, Release: "load"})
	if err != nil {
		return fmt.Errorf("starting a cluster: %w", err)
	}
	t.cleanup = append(t.cleanup, c.Stop)
	t.inProcess = true
	for _, address := range c.Addresses() {
		t.bases = append(t.bases, "http://"+address)
	}
	return t.connect(c.AdminAddress(), c.Authorities(), c.Credential())
}

// useContext reads a context file of the command line's.
func (t *target) useContext(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var file struct {
		Address    string `yaml:"address"`
		CA         string `yaml:"ca"`
		Credential string `yaml:"credential"`
	}
	if err := yaml.Load(data, &file, yaml.WithKnownFields()); err != nil || file.Address == "" || file.Credential == "" {
		return fmt.Errorf("%s is not a context file, as 'portcullis context create' writes them", path)
	}
	return t.connect(file.Address, []byte(file.CA), file.Credential)
}

// operator sends an operator's credential with each call.
type operator string

func (o operator) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(o)}, nil
}

func (operator) RequireTransportSecurity() bool { return true }

func (t *target) connect(address string, authorities []byte, credential string) error {
	secure, err := identity.ClientAdmin(authorities)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(secure)), grpc.WithPerRPCCredentials(operator(credential)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(256<<20), grpc.MaxCallSendMsgSize(256<<20)))
	if err != nil {
		return err
	}
	t.admin = adminv1.NewAdminServiceClient(conn)
	t.cleanup = append(t.cleanup, conn.Close)
	return nil
}

// operator returns the admin API, or says why there is none.
func (t *target) operator() (adminv1.AdminServiceClient, error) {
	if t.admin == nil {
		return nil, errors.New("the scenario asks the admin API: give -context FILE along with -address")
	}
	return t.admin, nil
}

// apply commits a change and returns how long it took until every node ran it.
func (t *target) apply(ctx context.Context, change *adminv1.Change) (time.Duration, error) {
	admin, err := t.operator()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	resp, err := admin.Apply(ctx, &adminv1.ApplyRequest{Change: change, Reason: "load test", WaitFor: durationpb.New(converge)})
	if err != nil {
		return 0, err
	}
	if !resp.Convergence.GetConverged() {
		return 0, fmt.Errorf("not every node runs revision %d within %s", resp.Version.GetRevision(), converge)
	}
	return time.Since(began), nil
}

// mint makes a token of the built-in issuer.
func (t *target) mint(ctx context.Context, subject string, want Token) (token, jti string, err error) {
	admin, err := t.operator()
	if err != nil {
		return "", "", err
	}
	resp, err := admin.MintToken(ctx, &adminv1.MintTokenRequest{Subject: subject, Scopes: want.Scopes, Audiences: want.Audiences})
	return resp.GetToken(), resp.GetJti(), err
}

// serveUpstream serves what stands behind the cluster.
func (t *target) serveUpstream(u Upstream) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	body := []byte(strings.Repeat("x", u.Bytes))
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u.Delay > 0 {
			select {
			case <-time.After(u.Delay):
			case <-r.Context().Done():
			}
		}
		_, _ = w.Write(body)
	})}
	t.upstream = "http://" + listener.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.cleanup = append(t.cleanup, func() error {
		err := server.Close()
		<-ended
		return err
	})
	return nil
}

// close stops what was started, the last first.
func (t *target) close() error {
	var errs []error
	for i := len(t.cleanup) - 1; i >= 0; i-- {
		errs = append(errs, t.cleanup[i]())
	}
	t.cleanup = nil
	return errors.Join(errs...)
}
