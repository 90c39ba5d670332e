package dataplane

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"portcullis.dev/portcullis/dataplane/follow"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits that end by an event; it is no promise.
const patience = 20 * time.Second

// await polls for what no event tells.
func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in %v", what, patience)
		}
	}
}

// log is an access log to look at.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newCA(t testing.TB) *identity.CA {
	t.Helper()
	ca, err := identity.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issue makes a member of the cluster.
func issue(t testing.TB, ca *identity.CA, id identity.Identity, hosts ...string) identity.State {
	t.Helper()
	key, csr, err := identity.NewRequest(id, hosts...)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue(csr, id, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return identity.State{Key: key, Issued: issued}
}

func socket(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// nowhere is an address on which nobody listens.
func nowhere(t testing.TB) string {
	t.Helper()
	ln := socket(t)
	_ = ln.Close()
	return ln.Addr().String()
}

// alone is a node that is part of a cluster of which nobody answers.
func alone(t testing.TB) (*Node, *log) {
	t.Helper()
	access := &log{}
	cfg := Config{
		Name: "n1", DataDir: t.TempDir(), Control: []string{nowhere(t)}, Listener: socket(t), Metrics: socket(t),
		AccessLog: access, Drain: patience, Release: "test", Log: slog.New(slog.DiscardHandler),
	}
	state := issue(t, newCA(t), identity.Identity{Role: identity.Dataplane, Name: "n1"})
	if err := state.Save(filepath.Join(cfg.DataDir, "identity")); err != nil {
		t.Fatal(err)
	}
	n, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return n, access
}

// run runs the node until stop; the error comes from result.
func run(t testing.TB, n *Node) (stop context.CancelFunc, result <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done, out := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(done)
		out <- n.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return cancel, out
}

// apply makes documents the node's configuration, as a stream would.
func apply(t testing.TB, n *Node, revision int64, text string) {
	t.Helper()
	decoded, err := config.Decode("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var rs []*configv1.Resource
	for _, d := range decoded {
		rs = append(rs, d.Resource)
	}
	checked, err := config.Check(rs)
	if err != nil {
		t.Fatal(err)
	}
	next := follow.Next{Version: config.Version{Epoch: 1, Revision: revision}, Checked: checked, Affected: config.Affected{All: true}}
	if err := (applier{n}).Apply(context.Background(), next); err != nil {
		t.Fatal(err)
	}
}
