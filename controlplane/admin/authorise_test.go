package admin

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Which operators a method lets in: those bound to no workspace, those who cover
// the workspace shop, or all of the roles.
type scope int

const (
	unbound scope = iota
	covering
	anyScope
)

// rule is the matrix's row for one method. It is written down here a second time,
// on purpose: the service's own table is what is tested.
type rule struct {
	roles  string // first letters: Viewer, Editor, Security, Admin
	scope  scope
	action Action
	// request makes a request about the workspace shop that succeeds when allowed.
	request func(t *testing.T, f *fixture) any
}

var rules = map[string]rule{
	"Apply": {"EA", covering, ActionWrite, func(*testing.T, *fixture) any {
		return &adminv1.ApplyRequest{Change: upsert(application("shop", "new", ""))}
	}},
	"Plan": {"VESA", covering, ActionRead, func(*testing.T, *fixture) any {
		return &adminv1.PlanRequest{Change: upsert(application("shop", "new", ""))}
	}},
	"List": {"VESA", covering, ActionRead, func(*testing.T, *fixture) any { return &adminv1.ListRequest{Workspace: "shop"} }},
	"Get": {"VESA", covering, ActionRead, func(*testing.T, *fixture) any {
		return &adminv1.GetRequest{Kind: "Application", Workspace: "shop", Name: "app"}
	}},
	"Watch": {"VESA", anyScope, ActionRead, func(*testing.T, *fixture) any {
		return &adminv1.WatchRequest{After: &controlv1.Version{Epoch: 1}} // the first revision
	}},
	"History": {"VESA", covering, ActionRead, func(*testing.T, *fixture) any { return &adminv1.HistoryRequest{Workspace: "shop"} }},
	"Rollback": {"EA", unbound, ActionWrite, func(t *testing.T, f *fixture) any {
		return &adminv1.RollbackRequest{Revision: f.first.Revision}
	}},
	"Wait":   {"VESA", anyScope, ActionRead, func(*testing.T, *fixture) any { return &adminv1.WaitRequest{} }},
	"Status": {"VESA", anyScope, ActionRead, func(*testing.T, *fixture) any { return &adminv1.StatusRequest{} }},
	"Why":    {"VESA", anyScope, ActionRead, nil}, // what it answers depends on the record: TestWhyOfOthers
	"CreateKey": {"SA", covering, ActionKeys, func(*testing.T, *fixture) any {
		return &adminv1.CreateKeyRequest{Workspace: "shop", Application: "app"}
	}},
	"RevokeKey": {"SA", covering, ActionKeys, func(t *testing.T, f *fixture) any {
		if _, err := f.client.CreateKey(f.as(t, "admin"), &adminv1.CreateKeyRequest{Workspace: "shop", Name: "k", Application: "app"}); err != nil {
			t.Fatal(err)
		}
		return &adminv1.RevokeKeyRequest{Workspace: "shop", Name: "k"}
	}},
	"MintToken": {"SA", covering, ActionMint, func(*testing.T, *fixture) any {
		return &adminv1.MintTokenRequest{Issuer: "shop/own", Subject: "alice"}
	}},
	"Revoke":          {"SA", unbound, ActionRevoke, func(*testing.T, *fixture) any { return &adminv1.RevokeRequest{Subject: "alice"} }},
	"CreateJoinToken": {"A", unbound, ActionNodes, func(*testing.T, *fixture) any { return &adminv1.CreateJoinTokenRequest{} }},
	"RemoveNode": {"A", unbound, ActionNodes, func(t *testing.T, f *fixture) any {
		if _, err := f.memory.Items("nodes").Put(t.Context(), "node-1", nil, store.Write{At: store.Overwrite}); err != nil {
			t.Fatal(err)
		}
		return &adminv1.RemoveNodeRequest{Name: "node-1"}
	}},
	"CreateOperator": {"A", unbound, ActionManageOperators, func(*testing.T, *fixture) any {
		return &adminv1.CreateOperatorRequest{Operator: &adminv1.Operator{Name: "new", Role: adminv1.Role_ROLE_ADMIN}}
	}},
	"ListOperators": {"A", unbound, ActionManageOperators, func(*testing.T, *fixture) any { return &adminv1.ListOperatorsRequest{} }},
	"DeleteOperator": {"A", unbound, ActionManageOperators, func(t *testing.T, f *fixture) any {
		f.as(t, "viewer@other")
		return &adminv1.DeleteOperatorRequest{Name: "viewer.at.other"}
	}},
}

// call calls a method by name, a stream up to its first message.
func (f *fixture) call(ctx context.Context, method string, request any) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := reflect.ValueOf(f.client).MethodByName(method).Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(request)})
	if err, _ := out[1].Interface().(error); err != nil {
		return err
	}
	if stream, ok := out[0].Interface().(grpc.ClientStream); ok {
		return stream.RecvMsg(&adminv1.WatchResponse{})
	}
	return nil
}

// methods lists every method of the service, so that a new one without a rule
// fails here.
func methods(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, m := range adminv1.AdminService_ServiceDesc.Methods {
		all = append(all, m.MethodName)
	}
	for _, s := range adminv1.AdminService_ServiceDesc.Streams {
		all = append(all, s.StreamName)
	}
	for _, name := range all {
		if _, ok := rules[name]; !ok {
			t.Fatalf("the method %s has no rule: who may call it?", name)
		}
	}
	if len(all) != len(rules) {
		t.Fatalf("%d methods, %d rules", len(all), len(rules))
	}
	return all
}

func TestWhoMayCallWhat(t *testing.T) {
	for _, method := range methods(t) {
		rule := rules[method]
		if rule.request == nil {
			continue
		}
		t.Run(method, func(t *testing.T) {
			for _, role := range []string{"viewer", "editor", "security", "admin"} {
				for bound, in := range map[string]bool{
					"": true, "@shop": rule.scope != unbound, "@shop,other": rule.scope != unbound, "@other": rule.scope == anyScope,
				} {
					allowed := in && strings.Contains(rule.roles, strings.ToUpper(role[:1]))
					t.Run(role+bound, func(t *testing.T) { oneCall(t, method, rule, role+bound, allowed) })
				}
			}
		})
	}
}

func oneCall(t *testing.T, method string, rule rule, operator string, allowed bool) {
	f := newFixture(t, nil)
	request := rule.request(t, f)
	ctx := f.as(t, operator)
	f.audit.taken()
	before := f.writes(t)
	err := f.call(ctx, method, request)
	records := f.audit.taken()
	if len(records) != 1 {
		t.Fatalf("audited %d times: %v", len(records), records)
	}
	outcome, level := "allowed", "INFO"
	if !allowed {
		outcome, level = "denied", "WARN"
	}
	name := strings.NewReplacer("@", ".at.", ",", ".").Replace(operator)
	if r := records[0]; r["outcome"] != outcome || r["level"] != level || r["operator"] != name || r["action"] != string(rule.action) || r["target"] == "" || r["at"] == "" {
		t.Errorf("audit record %v", r)
	}
	if allowed {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v, want PermissionDenied", err)
	}
	if after := f.writes(t); after != before+1 { // the probe's own
		t.Errorf("a denied call wrote %d times", after-before-1)
	}
}

// Whatever the method: who is nobody gets Unauthenticated, is audited, changes
// nothing, and learns nothing of the request's own mistakes.
func TestNobody(t *testing.T) {
	f := newFixture(t, nil)
	requests := map[string]any{"Why": &adminv1.WhyRequest{RequestId: "of-shop"}}
	for _, method := range methods(t) {
		if requests[method] == nil {
			requests[method] = rules[method].request(t, f)
		}
	}
	deleted := f.as(t, "editor")
	if _, err := f.client.DeleteOperator(f.as(t, "admin"), &adminv1.DeleteOperatorRequest{Name: "editor"}); err != nil {
		t.Fatal(err)
	}
	// A credential whose operator is gone but that itself was left, as a crash
	// between the two could.
	orphan, digest := identity.NewOperatorCredential()
	if _, err := f.memory.Items(operatorHashes).Put(t.Context(), hex.EncodeToString(digest[:]), []byte("ghost"), store.Write{}); err != nil {
		t.Fatal(err)
	}
	unknown, _ := identity.NewOperatorCredential()
	good := f.credentials["admin"]
	header := func(values ...string) context.Context {
		ctx := t.Context()
		for _, v := range values {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", v)
		}
		return ctx
	}
	callers := map[string]context.Context{
		"no header": t.Context(), "empty": header(""), "deleted": deleted, "orphan": bearer(t.Context(), orphan), "unknown": bearer(t.Context(), unknown),
		"no scheme": header(good), "basic": header("Basic " + good), "twice": header("Bearer "+good, "Bearer "+good),
		"two in one": header("Bearer " + good + ", Bearer " + good), "cut short": header("Bearer " + good[:len(good)-1]),
		"longer": header("Bearer " + good + "A"), "space": header("Bearer  " + good), "upper case": header("Bearer " + strings.ToUpper(good)),
		"only prefix": header("Bearer pco_"), "an API key": header("Bearer pc_" + good[4:]), "the name": header("Bearer admin"), "a hash": header("Bearer " + hex.EncodeToString(digest[:])),
	}
	f.audit.taken()
	before := f.writes(t)
	calls := int64(0)
	for caller, ctx := range callers {
		for method, request := range requests {
			calls++
			if err := f.call(ctx, method, request); status.Code(err) != codes.Unauthenticated || strings.Contains(err.Error(), "pco_") && strings.Contains(err.Error(), good[4:]) {
				t.Errorf("%s: %s: %v", caller, method, err)
			}
			records := f.audit.taken()
			if len(records) != 1 || records[0]["operator"] != "(unknown)" || records[0]["outcome"] != "denied" {
				t.Errorf("%s: %s: audited %v", caller, method, records)
			}
		}
	}
	if n := f.writes(t) - before - 1; n != 0 {
		t.Errorf("%d calls by nobody wrote %d times", calls, n)
	}
}

// broken is a store of which some parts do not answer.
type broken struct {
	store.Store
	items error
}

type brokenItems struct {
	store.ItemStore
	err error
}

func (b *broken) Items(room string) store.ItemStore { return brokenItems{b.Store.Items(room), b.items} }
func (b brokenItems) Get(ctx context.Context, name string) (store.Item, error) {
	if b.err != nil {
		return store.Item{}, b.err
	}
	return b.ItemStore.Get(ctx, name)
}

// When operators cannot be looked up nobody gets in, and nobody is told how the
// store is reached.
func TestStoreDownLetsNobodyIn(t *testing.T) {
	var down *broken
	f := newFixture(t, func(s store.Store) store.Store { down = &broken{Store: s}; return down })
	ctx := f.as(t, "admin")
	f.audit.taken()
	down.items = errors.New("dial tcp 10.0.0.7:2379: refused")
	_, err := f.client.Status(ctx, &adminv1.StatusRequest{})
	if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "10.0.0.7") {
		t.Errorf("got %v", err)
	}
	if r := f.audit.taken(); len(r) != 1 || r[0]["outcome"] != "denied" {
		t.Errorf("audited %v", r)
	}
}

// A deleted operator's open stream ends with the next revision, unseen by it.
func TestWatchEndsWithItsOperator(t *testing.T) {
	f := newFixture(t, nil)
	stream, err := f.client.Watch(f.as(t, "viewer"), &adminv1.WatchRequest{After: f.first.Proto()})
	if err != nil {
		t.Fatal(err)
	}
	f.apply(t, upsert(application("shop", "a", "")))
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.DeleteOperator(f.as(t, "admin"), &adminv1.DeleteOperatorRequest{Name: "viewer"}); err != nil {
		t.Fatal(err)
	}
	f.apply(t, upsert(application("shop", "b", "")))
	if got, err := stream.Recv(); status.Code(err) != codes.Unauthenticated || errors.Is(err, io.EOF) {
		t.Errorf("a deleted operator still got %v, %v", got, err)
	}
	if records := f.audit.taken(); !slices.ContainsFunc(records, func(r map[string]string) bool {
		return r["target"] == "watch" && r["outcome"] == "denied" && r["level"] == slog.LevelWarn.String()
	}) {
		t.Errorf("the stream's end was not audited: %v", records)
	}
}

func TestOperators(t *testing.T) {
	f := newFixture(t, nil)
	admin := f.as(t, "admin")
	for name, o := range map[string]*adminv1.Operator{
		"none": nil, "no name": {Role: adminv1.Role_ROLE_ADMIN}, "no role": {Name: "x"}, "unknown role": {Name: "x", Role: 99},
		"upper case": {Name: "X", Role: 1}, "slash": {Name: "a/b", Role: 1}, "newline": {Name: "a\nb", Role: 1}, "long": {Name: strings.Repeat("a", 64), Role: 1},
		"star": {Name: "x", Role: 1, Workspaces: []string{"*"}}, "empty workspace": {Name: "x", Role: 1, Workspaces: []string{""}},
	} {
		if _, err := f.client.CreateOperator(admin, &adminv1.CreateOperatorRequest{Operator: o}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	made, err := f.client.CreateOperator(admin, &adminv1.CreateOperatorRequest{Operator: &adminv1.Operator{Name: "ci@corp", Role: adminv1.Role_ROLE_EDITOR, Workspaces: []string{"shop"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.CreateOperator(admin, &adminv1.CreateOperatorRequest{Operator: &adminv1.Operator{Name: "ci@corp", Role: adminv1.Role_ROLE_ADMIN}}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("made again: %v", err)
	}
	ci := bearer(t.Context(), made.Credential)
	if _, err := f.client.Apply(ci, &adminv1.ApplyRequest{Change: upsert(application("shop", "x", "")), Reason: "ci", WaitFor: durationpb.New(1)}); err != nil {
		t.Error(err)
	}
	listed, err := f.client.ListOperators(admin, &adminv1.ListOperatorsRequest{})
	if err != nil || len(listed.Operators) != 2 || listed.Operators[1].Name != "ci@corp" || listed.Operators[1].CreatedAt == nil || strings.Contains(listed.String(), made.Credential) {
		t.Errorf("listed %v, %v", listed, err)
	}
	if _, err := f.client.DeleteOperator(admin, &adminv1.DeleteOperatorRequest{Name: "admin"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("deleted itself: %v", err)
	}
	if _, err := f.client.DeleteOperator(admin, &adminv1.DeleteOperatorRequest{Name: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("deleted nobody: %v", err)
	}
	if _, err := f.client.DeleteOperator(admin, &adminv1.DeleteOperatorRequest{Name: "ci@corp"}); err != nil {
		t.Fatal(err)
	}
	// A new operator of the old name does not revive the old credential.
	if _, err := f.client.CreateOperator(admin, &adminv1.CreateOperatorRequest{Operator: &adminv1.Operator{Name: "ci@corp", Role: adminv1.Role_ROLE_ADMIN}}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.Status(ci, &adminv1.StatusRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the old credential: %v", err)
	}
}
