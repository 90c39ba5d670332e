package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// fixture is a whole cluster in this process with one upstream behind it, and an
// operator's connection to its admin API.
type fixture struct {
	*cluster.Cluster
	admin    adminv1.AdminServiceClient
	conn     *grpc.ClientConn
	upstream *http.Server
	url      string
	dir      string
}

// newFixture starts a cluster; prepare, when not nil, makes its data directory
// before that, and returns the operator's credential.
func newFixture(ctx context.Context, nodes int, prepare func(dir string) (string, error)) (f *fixture, err error) {
	f = &fixture{}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if f.dir, err = os.MkdirTemp("", "portcullis-bench-"); err != nil {
		return nil, err
	}
	credential := ""
	if prepare != nil {
		if credential, err = prepare(f.dir); err != nil {
			return nil, err
		}
	}
	if err := f.startUpstream(); err != nil {
		return nil, err
	}
	if f.Cluster, err = cluster.Start(ctx, cluster.Config{Dir: f.dir, Nodes: nodes, Drain: time.Second, Release: "bench"}); err != nil {
		return nil, err
	}
	if credential == "" {
		credential = f.Credential()
	}
	secure, err := identity.ClientAdmin(f.Authorities())
	if err != nil {
		return nil, err
	}
	f.conn, err = grpc.NewClient("passthrough:///"+f.AdminAddress(),
		grpc.WithTransportCredentials(credentials.NewTLS(secure)), grpc.WithPerRPCCredentials(operator(credential)))
	if err != nil {
		return nil, err
	}
	f.admin = adminv1.NewAdminServiceClient(f.conn)
	return f, nil
}

// operator sends the first operator's credential with each call.
type operator string

func (o operator) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(o)}, nil
}

func (operator) RequireTransportSecurity() bool { return true }

func (f *fixture) startUpstream() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	f.url = "http://" + listener.Addr().String()
	f.upstream = &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }),
		ReadHeaderTimeout: 5 * time.Second,
	}
	go func() { _ = f.upstream.Serve(listener) }()
	return nil
}

// apply applies YAML, in which %[1]s is the upstream's URL, and waits until every
// node runs it.
func (f *fixture) apply(ctx context.Context, text string) error {
	resources, err := decode(fmt.Sprintf(text, f.url))
	if err != nil {
		return err
	}
	resp, err := f.admin.Apply(ctx, &adminv1.ApplyRequest{
		Change: &adminv1.Change{Upserts: resources}, Reason: "bench", WaitFor: durationpb.New(20 * time.Second),
	})
	if err != nil {
		return err
	}
	if !resp.Convergence.Converged {
		return fmt.Errorf("not converged: %v", resp.Convergence.Behind)
	}
	return nil
}

func (f *fixture) close() error {
	var errs []error
	if f.conn != nil {
		errs = append(errs, f.conn.Close())
	}
	if f.Cluster != nil {
		errs = append(errs, f.Stop())
	}
	if f.upstream != nil {
		errs = append(errs, f.upstream.Close())
	}
	if f.dir != "" {
		errs = append(errs, os.RemoveAll(f.dir))
	}
	return errors.Join(errs...)
}

// client asks one node over connections that it keeps.
type client struct {
	http http.Client
	base string
}

func newClient(address string) *client {
	return &client{http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 10 * time.Second}, "http://" + address}
}

func (f *fixture) clients() []*client {
	var all []*client
	for _, address := range f.Addresses() {
		all = append(all, newClient(address))
	}
	return all
}

// answer is what a probe wants to know of a response.
type answer struct {
	status int
	reason string
	header http.Header
}

// get sends a GET with the header fields given in pairs.
func (c *client) get(ctx context.Context, path string, fields ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: resp.StatusCode, header: resp.Header}
	if len(body) > 0 {
		var problem struct{ Reason string }
		if err := json.Unmarshal(body, &problem); err != nil {
			return a, fmt.Errorf("status %d: %w", resp.StatusCode, err)
		}
		a.reason = problem.Reason
	}
	return a, nil
}

// pollPause lies between two requests of one poll: without it the polls of all
// nodes would take the processors from the cluster that they look at.
const pollPause = 300 * time.Microsecond

// pollUntil asks until done says yes, and returns when that answer was there.
func (c *client) pollUntil(ctx context.Context, done func(answer) bool, path string, fields ...string) (time.Time, error) {
	for {
		a, err := c.get(ctx, path, fields...)
		if err != nil {
			return time.Time{}, err
		}
		if done(a) {
			return time.Now(), nil
		}
		pause := time.NewTimer(pollPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return time.Time{}, fmt.Errorf("%s: last answer %d %s: %w", path, a.status, a.reason, ctx.Err())
		}
	}
}

func closeIdle(all []*client) {
	for _, c := range all {
		c.http.CloseIdleConnections()
	}
}
