package dataplane

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"portcullis.dev/portcullis/pkg/identity"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// desk is a control plane that lets nodes join.
type desk struct {
	controlv1.UnimplementedJoinServiceServer
	ca      *identity.CA
	refusal error
	asked   atomic.Int32
	address string
}

func (d *desk) Join(_ context.Context, req *controlv1.JoinRequest) (*controlv1.JoinResponse, error) {
	d.asked.Add(1)
	if d.refusal != nil {
		return nil, d.refusal
	}
	id, err := identity.RequestedIdentity(req.Csr)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	issued, err := d.ca.Issue(req.Csr, id, 0, time.Now())
	return &controlv1.JoinResponse{Certificates: issued.Certificates, Authorities: issued.Authorities}, err
}

func newDesk(t *testing.T, refusal error) *desk {
	t.Helper()
	d := &desk{ca: newCA(t), refusal: refusal}
	live, err := identity.NewLive(issue(t, d.ca, identity.Identity{Role: identity.Controlplane, Name: "c1"}, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(identity.ServerControl(live))))
	controlv1.RegisterJoinServiceServer(server, d)
	ln := socket(t)
	d.address = ln.Addr().String()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return d
}

func (d *desk) token(t *testing.T) string {
	t.Helper()
	token, err := identity.NewJoinToken(d.ca.Pins())
	if err != nil {
		t.Fatal(err)
	}
	return token.Reveal()
}

func TestJoin(t *testing.T) {
	d := newDesk(t, nil)
	dir := filepath.Join(t.TempDir(), "identity")
	cfg := &Config{Name: "n1", Control: []string{nowhere(t), d.address}, JoinToken: d.token(t)}
	live, err := enter(t.Context(), cfg, dir)
	if err != nil || live.Identity() != (identity.Identity{Role: identity.Dataplane, Name: "n1"}) {
		t.Fatal(live, err)
	}
	// From then on neither token nor control plane is needed.
	again, err := enter(t.Context(), &Config{Name: "n1", JoinToken: "nonsense"}, dir)
	if err != nil || again.Identity() != live.Identity() || d.asked.Load() != 1 {
		t.Error(again, err)
	}
	_, err = enter(t.Context(), &Config{Name: "n2", JoinToken: d.token(t), Control: cfg.Control}, dir)
	if err == nil || d.asked.Load() != 1 {
		t.Fatal("another node's identity is taken, or given away for a new one")
	}
	for _, part := range []string{dir, "n1", "n2", "another data directory"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}

// Each way to stay outside says what to do about it.
func TestJoinErrors(t *testing.T) {
	dir := func() string { return filepath.Join(t.TempDir(), "identity") }
	want := func(err error, parts ...string) {
		t.Helper()
		if err == nil {
			t.Fatal("joined")
		}
		for _, part := range parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %q", err, part)
			}
		}
	}
	good := newDesk(t, nil)

	_, err := enter(t.Context(), &Config{Name: "n1", Control: []string{good.address}}, dir())
	want(err, "join token", "portcullis join-token create")
	if !errors.Is(err, ErrNoIdentity) {
		t.Error(err)
	}
	_, err = enter(t.Context(), &Config{Name: "n1", Control: []string{good.address}, JoinToken: "pcj_swordfish"}, dir())
	if !errors.Is(err, identity.ErrJoinToken) || strings.Contains(err.Error(), "swordfish") {
		t.Error(err)
	}
	_, err = enter(t.Context(), &Config{Name: "Not A Name", Control: []string{good.address}, JoinToken: good.token(t)}, dir())
	want(err, "Not A Name")

	a, b := nowhere(t), nowhere(t)
	_, err = enter(t.Context(), &Config{Name: "n1", Control: []string{a, b}, JoinToken: good.token(t)}, dir())
	want(err, a, b)

	// A refusal is the cluster's word: no other control plane is asked.
	spent := newDesk(t, status.Error(codes.PermissionDenied, "this join token has been used"))
	_, err = enter(t.Context(), &Config{Name: "n1", Control: []string{spent.address, good.address}, JoinToken: spent.token(t)}, dir())
	want(err, spent.address, "has been used")
	if good.asked.Load() != 0 || spent.asked.Load() != 1 {
		t.Errorf("asked %d and %d", good.asked.Load(), spent.asked.Load())
	}

	// A control plane of another cluster does not get to see the token.
	_, err = enter(t.Context(), &Config{Name: "n1", Control: []string{good.address}, JoinToken: spent.token(t)}, dir())
	want(err, good.address)
	if good.asked.Load() != 0 {
		t.Error("a token was shown to a cluster that it is not for")
	}

	_, err = New(t.Context(), Config{Name: "n1", DataDir: t.TempDir()})
	want(err, "control plane")
}
