package admin

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// bound are operators of the workspace shop alone, of each role.
var bound = []string{"viewer@shop", "editor@shop", "security@shop", "admin@shop"}

// An operator of one workspace gets nothing of another's through any method, by
// whatever way it is asked for. Everything of the other workspace's that must not
// come out says "confidential" or names the workspace.
func TestNothingOfOthersIsRead(t *testing.T) {
	f := newFixture(t, nil)
	if _, err := f.client.CreateKey(f.as(t, "admin"), &adminv1.CreateKeyRequest{Workspace: "other", Name: "confidential", Application: "app"}); err != nil {
		t.Fatal(err)
	}
	f.apply(t, upsert(application("other", "later", "confidential")))
	for _, name := range bound {
		ctx := f.as(t, name)
		requests := map[string]any{
			"Get": &adminv1.GetRequest{Kind: "Application", Workspace: "other", Name: "app"}, "List": &adminv1.ListRequest{Workspace: "other"},
			"Plan":    &adminv1.PlanRequest{Change: upsert(application("other", "app", "guess"))},
			"History": &adminv1.HistoryRequest{Workspace: "other"}, "Why": &adminv1.WhyRequest{RequestId: "of-other"},
			"Apply":     &adminv1.ApplyRequest{Change: remove("Application", "other", "app")},
			"CreateKey": &adminv1.CreateKeyRequest{Workspace: "other", Application: "app"},
			"RevokeKey": &adminv1.RevokeKeyRequest{Workspace: "other", Name: "confidential"},
			"MintToken": &adminv1.MintTokenRequest{Issuer: "other/own", Subject: "mallory"},
			"Rollback":  &adminv1.RollbackRequest{Revision: f.first.Revision}, "Revoke": &adminv1.RevokeRequest{Issuer: "other/own"},
		}
		for method, request := range requests {
			want := codes.PermissionDenied
			if method == "Why" {
				want = codes.NotFound // as for what is not there
			}
			if err := f.call(ctx, method, request); status.Code(err) != want {
				t.Errorf("%s: %s: %v", name, method, err)
			}
		}
		for _, kind := range []string{"Workspace", "KeySet", "Credential"} {
			key := &adminv1.GetRequest{Kind: kind, Workspace: "other", Name: "own"}
			if kind == "Workspace" {
				key = &adminv1.GetRequest{Kind: kind, Workspace: "shop", Name: "other"}
			}
			if _, err := f.client.Get(ctx, key); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s: get %v: %v", name, key, err)
			}
		}
		// What is answered for all of the operator's workspaces has no other in it.
		answers := map[string]fmt.Stringer{}
		list, err := f.client.List(ctx, &adminv1.ListRequest{})
		answers["List"] = list
		credentials, err2 := f.client.List(ctx, &adminv1.ListRequest{Kind: "Credential"})
		answers["List credentials"] = credentials
		history, err3 := f.client.History(ctx, &adminv1.HistoryRequest{})
		answers["History"] = history
		st, err4 := f.client.Status(ctx, &adminv1.StatusRequest{})
		answers["Status"] = st
		wait, err5 := f.client.Wait(ctx, &adminv1.WaitRequest{Timeout: durationpb.New(1)})
		answers["Wait"] = wait
		stream, err6 := f.client.Watch(ctx, &adminv1.WatchRequest{After: f.first.Proto()})
		for i, err := range []error{err, err2, err3, err4, err5, err6} {
			if err != nil {
				t.Fatalf("%s: %d: %v", name, i, err)
			}
		}
		mine := f.apply(t, upsert(application("shop", "seen-by-"+strings.ReplaceAll(name, "@", "-"), "")))
		for config.VersionOf(nil) != mine {
			entry, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			answers["Watch"] = entry
			if config.VersionOf(entry.Entry.Version) == mine {
				break
			}
		}
		for method, answer := range answers {
			// The nodes' problems say that there are some, and not which.
			text := strings.ReplaceAll(answer.String(), "a resource of another workspace was rejected", "")
			if strings.Contains(text, "other") || strings.Contains(text, "confidential") {
				t.Errorf("%s: %s shows another workspace: %s", name, method, text)
			}
		}
		if !strings.Contains(list.String(), "shop") || !strings.Contains(st.String(), "Route shop/mine") {
			t.Errorf("%s does not see its own: %v %v", name, list, st)
		}
	}
}

// A request that matched no route belongs to no workspace: only who is bound to
// none may ask.
func TestWhyOfOthers(t *testing.T) {
	f := newFixture(t, nil)
	for id, want := range map[string]map[string]bool{
		"of-shop": {"viewer": true, "viewer@shop": true, "viewer@other": false}, "of-other": {"viewer": true, "viewer@shop": false},
		"of-none": {"viewer": true, "viewer@shop": false}, "unheard-of": {"viewer": false, "viewer@shop": false},
	} {
		for name, found := range want {
			resp, err := f.client.Why(f.as(t, name), &adminv1.WhyRequest{RequestId: id})
			if found && (err != nil || resp.Record.RequestId != id) || !found && status.Code(err) != codes.NotFound {
				t.Errorf("%s asks why %s: %v %v", name, id, resp, err)
			}
		}
	}
}

// What binds every workspace is written only by who is bound to none, and a
// change needs every workspace that it touches.
func TestWritesNeedEveryWorkspaceTouched(t *testing.T) {
	f := newFixture(t, nil)
	workspace := func(name string) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Name: name}, Spec: &configv1.Resource_Workspace{Workspace: &configv1.Workspace{}}}
	}
	gateway := func(in string) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Workspace: in, Name: "default"}, Spec: &configv1.Resource_Gateway{Gateway: &configv1.Gateway{}}}
	}
	nameless := application("", "a", "")
	both := upsert(application("shop", "a", ""))
	both.Deletes = remove("Application", "other", "app").Deletes
	for name, change := range map[string]*adminv1.Change{
		"own workspace's document": upsert(workspace("shop")), "new workspace": upsert(workspace("mine")), "workspace in disguise": upsert(&configv1.Resource{
			Metadata: &configv1.Metadata{Workspace: "shop", Name: "x"}, Spec: &configv1.Resource_Workspace{Workspace: &configv1.Workspace{}}}),
		"gateway": upsert(gateway("default")), "gateway in the workspace": upsert(gateway("shop")),
		"the default workspace": upsert(nameless), "two workspaces": both, "another's": upsert(application("other", "a", "")),
		"delete gateway": remove("Gateway", "shop", "default"), "delete workspace": remove("Workspace", "shop", "shop"),
		"delete another's": remove("Application", "other", "app"), "delete of the default one": remove("Application", "", "app"), "nothing": {}, "none": nil,
	} {
		before := f.writes(t)
		for method, request := range map[string]any{"Apply": &adminv1.ApplyRequest{Change: change}, "Plan": &adminv1.PlanRequest{Change: change}} {
			if err := f.call(f.as(t, "admin@shop"), method, request); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s: %s: %v", name, method, err)
			}
		}
		f.as(t, "admin@shop")
		if n := f.writes(t) - before - 1; n > 2 { // the operator's own two items, once
			t.Errorf("%s: written %d times", name, n)
		}
	}
	f.apply(t, upsert(gateway("default")))
}

// Every page is as long as asked for, in order, and together they are everything
// once, whatever the names. Some sort otherwise with their separator than
// without: "a-b/x" comes before "a/x".
func TestListPages(t *testing.T) {
	f := newFixture(t, nil)
	change := &adminv1.Change{}
	for _, name := range []string{"a", "a-b", "a.b", "ab"} {
		change.Upserts = append(change.Upserts, &configv1.Resource{Metadata: &configv1.Metadata{Name: name}, Spec: &configv1.Resource_Workspace{Workspace: &configv1.Workspace{}}})
		for _, app := range []string{"x", "x-y", "z"} {
			change.Upserts = append(change.Upserts, application(name, app, ""))
		}
	}
	f.apply(t, change)
	for _, workspace := range []string{"a", "a-b", "a.b", "ab"} {
		for i := range 5 {
			if _, err := f.client.CreateKey(f.as(t, "admin"), &adminv1.CreateKeyRequest{Workspace: workspace, Name: fmt.Sprint("k", i), Application: "x"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, who := range []string{"viewer", "viewer@a,a-b,a,ab"} {
		for _, kind := range []string{"", "Application", "Credential"} {
			whole, err := f.client.List(f.as(t, who), &adminv1.ListRequest{Kind: kind})
			if err != nil || whole.NextPageToken != "" {
				t.Fatalf("%v %v", whole, err)
			}
			for size := int32(1); size < 9; size++ {
				var all []*configv1.Resource
				for token := ""; ; {
					page, err := f.client.List(f.as(t, who), &adminv1.ListRequest{Kind: kind, PageSize: size, PageToken: token})
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, page.Resources...)
					if token = page.NextPageToken; token == "" {
						break
					}
					if len(page.Resources) != int(size) {
						t.Fatalf("a page of %d, want %d", len(page.Resources), size)
					}
				}
				if got, want := names(all), names(whole.Resources); !slices.Equal(got, want) {
					t.Fatalf("%s lists %q in pages of %d: %v, want %v", who, kind, size, got, want)
				}
			}
		}
	}
	for _, token := range []string{"nonsense", "Route", "Nothing a/b", "Route ../x"} {
		if _, err := f.client.List(f.as(t, "viewer"), &adminv1.ListRequest{PageToken: token}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("page token %q: %v", token, err)
		}
	}
	if _, err := f.client.List(f.as(t, "viewer"), &adminv1.ListRequest{Kind: "Secret"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("unknown kind: %v", err)
	}
}

// History shows a bound operator as many entries as asked for, though others'
// lie in between.
func TestHistorySkipsOthers(t *testing.T) {
	f := newFixture(t, nil)
	for i := range 10 {
		f.apply(t, upsert(application("shop", fmt.Sprint("a", i), "")))
		for j := range 5 {
			f.apply(t, upsert(application("other", fmt.Sprintf("b%d-%d", i, j), "")))
		}
	}
	var seen []int64
	for before := int64(0); ; {
		page, err := f.client.History(f.as(t, "viewer@shop"), &adminv1.HistoryRequest{Limit: 3, Before: before})
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range page.Entries {
			before = entry.Version.Revision
			seen = append(seen, before)
		}
		if len(page.Entries) < 3 {
			break
		}
	}
	if len(seen) != 11 || !slices.IsSortedFunc(seen, func(a, b int64) int { return int(b - a) }) { // ten, and the first
		t.Errorf("saw %v", seen)
	}
}
