package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"portcullis.dev/portcullis/controlplane/keys"
	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hmacSecret = "aG1hYy1zZWNyZXQtaG1hYy1zZWNyZXQtaG1hYy1zZWNyZXQ="

// documents is what every fixture starts with: two workspaces with the same in
// them, and what all share.
const documents = `
{apiVersion: portcullis.dev/v1, kind: Workspace, metadata: {name: default}, spec: {}}
---
{apiVersion: portcullis.dev/v1, kind: Workspace, metadata: {name: shop}, spec: {}}
---
{apiVersion: portcullis.dev/v1, kind: Workspace, metadata: {name: other}, spec: {}}
---
{apiVersion: portcullis.dev/v1, kind: Issuer, metadata: {name: local}, spec: {issuer: "https://local.example", builtIn: true, algorithms: [ES256]}}
---
{apiVersion: portcullis.dev/v1, kind: Application, metadata: {workspace: shop, name: app}, spec: {scopes: [read, write]}}
---
{apiVersion: portcullis.dev/v1, kind: Application, metadata: {workspace: other, name: app}, spec: {scopes: [read, write], description: confidential}}
---
{apiVersion: portcullis.dev/v1, kind: Issuer, metadata: {workspace: shop, name: own}, spec: {issuer: "https://shop.example", builtIn: true, maxLifetime: 1h}}
---
{apiVersion: portcullis.dev/v1, kind: Issuer, metadata: {workspace: other, name: own}, spec: {issuer: "https://other.example", builtIn: true, maxLifetime: 48h}}
---
{apiVersion: portcullis.dev/v1, kind: Issuer, metadata: {workspace: other, name: hs}, spec: {issuer: "https://hs.example", algorithms: [HS256], hmacSecret: ` + hmacSecret + `}}
`

func decode(t testing.TB, yaml string) []*configv1.Resource {
	t.Helper()
	docs, err := config.Decode("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	resources := make([]*configv1.Resource, len(docs))
	for i, doc := range docs {
		resources[i] = doc.Resource
	}
	return resources
}

// application is a document that may be written at any time.
func application(workspace, name, description string) *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: workspace, Name: name},
		Spec:     &configv1.Resource_Application{Application: &configv1.Application{Description: description}},
	}
}

func upsert(resources ...*configv1.Resource) *adminv1.Change {
	return &adminv1.Change{Upserts: resources}
}

func remove(kind, workspace, name string) *adminv1.Change {
	return &adminv1.Change{Deletes: []*controlv1.ResourceKey{{Kind: kind, Workspace: workspace, Name: name}}}
}

// vault keeps issuers' keys in the store, as the control plane does.
type vault struct{ items store.ItemStore }

func (v vault) Load(ctx context.Context, name string) ([]byte, error) {
	item, err := v.items.Get(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return item.Value, err
}

func (v vault) Create(ctx context.Context, name string, key []byte) (bool, error) {
	_, err := v.items.Put(ctx, name, key, store.Write{})
	return err == nil, err
}

// view is a Mirror that follows a store. Hold makes it lag.
type view struct {
	mu       sync.Mutex
	checked  config.Checked
	version  config.Version
	keys     int
	revoked  int
	moved    chan struct{}
	lag      sync.RWMutex
	finished chan struct{}
}

func newView(t testing.TB, st store.Store) *view {
	t.Helper()
	state, err := st.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := &view{moved: make(chan struct{}), version: state.Version, finished: make(chan struct{})}
	if v.checked, err = config.Check(state.Resources); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(v.finished)
		for event, err := range st.Watch(ctx, state.Version) {
			if err != nil {
				return
			}
			v.take(t, event)
		}
	}()
	t.Cleanup(func() { cancel(); <-v.finished })
	return v
}

func (v *view) take(t testing.TB, event store.Event) {
	if event.Version.IsZero() {
		return
	}
	v.lag.RLock()
	defer v.lag.RUnlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	checked, _, err := v.checked.Apply(config.Delta{Upserts: event.Upserts, Deletes: event.Deletes})
	if err != nil {
		t.Errorf("revision %s is not valid: %v", event.Version, err)
		return
	}
	v.checked, v.version = checked, event.Version
	v.keys += len(event.CredentialPuts) - len(event.CredentialDeletes)
	v.revoked += len(event.Revocations)
	close(v.moved)
	v.moved = make(chan struct{})
}

func (v *view) Current() (config.Checked, config.Version) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.checked, v.version
}

func (v *view) Counts() (int, int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.keys, v.revoked
}

func (v *view) Await(ctx context.Context, version config.Version) error {
	for {
		v.mu.Lock()
		at, moved := v.version, v.moved
		v.mu.Unlock()
		if at.Compare(version) >= 0 {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// nodes is a Cluster of one node that rejected a revision of the workspace other,
// and remembers a request of each workspace.
type nodes struct{}

func (nodes) Nodes() []*controlv1.NodeStatus {
	return []*controlv1.NodeStatus{{Name: "n1", Connected: true, Problems: []*controlv1.Problem{
		{Resource: "Route other/secret-route", Path: "spec.backends[0]", Reason: "confidential"},
		{Resource: "Route shop/mine", Reason: "wrong"},
	}, Condition: &controlv1.Condition{EndpointsOut: 2, Endpoints: []*controlv1.EndpointCondition{
		{Workspace: "other", Upstream: "secret-route", Detail: "confidential"},
		{Workspace: "shop", Upstream: "mine", Detail: "status 503"},
	}}}}
}

func (n nodes) AwaitConvergence(context.Context, config.Version) *adminv1.Convergence {
	return &adminv1.Convergence{Total: 1, Behind: n.Nodes()}
}

func (nodes) Why(_ context.Context, id string) (*controlv1.DecisionRecord, bool, error) {
	workspace, ok := map[string]string{"of-shop": "shop", "of-other": "other", "of-none": ""}[id]
	return &controlv1.DecisionRecord{RequestId: id, Workspace: workspace, Path: "/confidential"}, ok, nil
}

func (nodes) Replicas(context.Context) ([]string, error) { return []string{"cp-1"}, nil }

// journal is an audit log in memory.
type journal struct {
	mu      sync.Mutex
	records []map[string]string
}

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }
func (j *journal) WithAttrs([]slog.Attr) slog.Handler       { return j }
func (j *journal) WithGroup(string) slog.Handler            { return j }
func (j *journal) Handle(_ context.Context, r slog.Record) error {
	fields := map[string]string{"level": r.Level.String()}
	r.Attrs(func(a slog.Attr) bool { fields[a.Key] = a.Value.String(); return true })
	j.mu.Lock()
	defer j.mu.Unlock()
	j.records = append(j.records, fields)
	return nil
}

// taken returns what was recorded since it was last called.
func (j *journal) taken() []map[string]string {
	j.mu.Lock()
	defer j.mu.Unlock()
	taken := j.records
	j.records = nil
	return taken
}

// fixture is the service over a store in memory, reached over gRPC.
type fixture struct {
	*Service
	memory *store.Memory
	view   *view
	audit  *journal
	client adminv1.AdminServiceClient
	first  config.Version
	// credentials of operators by name.
	credentials map[string]string
}

// newFixture makes a service; wrap, when not nil, stands between it and its store.
func newFixture(t testing.TB, wrap func(store.Store) store.Store) *fixture {
	t.Helper()
	memory := store.NewMemory()
	t.Cleanup(func() { _ = memory.Close() })
	f := &fixture{memory: memory, audit: &journal{}, credentials: map[string]string{}}
	var st store.Store = memory
	if wrap != nil {
		st = wrap(st)
	}
	issuers := &keys.Issuers{Client: &keys.Client{}, Vault: vault{memory.Items("issuer-keys")}}
	full, err := issuers.Complete(t.Context(), upsert(decode(t, documents)...), config.Checked{}, false)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := memory.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if f.first, err = memory.Apply(t.Context(), empty.Version, full, store.Meta{Author: "system", Reason: "beginnings"}); err != nil {
		t.Fatal(err)
	}
	f.view = newView(t, memory)
	f.Service = &Service{
		Store: st, Mirror: f.view, Cluster: nodes{}, Issuers: issuers, Release: "test",
		JoinToken: func(ctx context.Context, ttl time.Duration) (string, error) {
			_, err := memory.Items("join-tokens").Put(ctx, fmt.Sprint(time.Now().UnixNano()), nil, store.Write{TTL: ttl})
			return "pcj_token", err
		},
		RemoveNodeByName: func(ctx context.Context, name string) error {
			_, err := memory.Items("nodes").Delete(ctx, name)
			return err
		},
		Audit: slog.New(f.audit), Log: slog.New(slog.DiscardHandler),
	}
	f.serve(t)
	return f
}

func (f *fixture) serve(t testing.TB) {
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.UnaryInterceptor(UnaryErrors), grpc.StreamInterceptor(StreamErrors))
	adminv1.RegisterAdminServiceServer(server, f.Service)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///admin", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); server.Stop(); <-served })
	f.client = adminv1.NewAdminServiceClient(conn)
}

// as returns a context of an operator, who is made on first use. The name is a
// role, with the workspaces it is bound to: "editor", "viewer@shop",
// "admin@shop,other".
func (f *fixture) as(t testing.TB, name string) context.Context {
	t.Helper()
	credential, ok := f.credentials[name]
	if !ok {
		role, bound, _ := strings.Cut(name, "@")
		operator := &adminv1.Operator{Name: strings.NewReplacer("@", ".at.", ",", ".").Replace(name)}
		operator.Role = adminv1.Role(adminv1.Role_value["ROLE_"+strings.ToUpper(role)])
		if bound != "" {
			operator.Workspaces = strings.Split(bound, ",")
		}
		var err error
		if credential, err = AddOperator(t.Context(), f.memory, operator); err != nil {
			t.Fatal(err)
		}
		f.credentials[name] = credential
	}
	return bearer(t.Context(), credential)
}

func bearer(ctx context.Context, credential string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+credential)
}

// writes counts what was ever written to the store, on any lane and in any room.
func (f *fixture) writes(t testing.TB) int64 {
	t.Helper()
	n, err := f.memory.Items("probe").Put(t.Context(), "probe", nil, store.Write{At: store.Overwrite})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// apply writes as an admin and fails the test when that fails.
func (f *fixture) apply(t testing.TB, change *adminv1.Change) config.Version {
	t.Helper()
	resp, err := f.client.Apply(f.as(t, "admin"), &adminv1.ApplyRequest{Change: change})
	if err != nil {
		t.Fatal(err)
	}
	return config.VersionOf(resp.Version)
}

// names lists resources as "Kind workspace/name", sorted.
func names(resources []*configv1.Resource) []string {
	var out []string
	for _, r := range resources {
		out = append(out, config.KeyOf(r).String())
	}
	slices.Sort(out)
	return out
}
