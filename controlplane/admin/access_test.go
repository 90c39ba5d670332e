package admin

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// denied loads the store's deny lane as a node holds it.
func (f *fixture) denied(t testing.TB) *revocation.Set {
	t.Helper()
	state, err := f.memory.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	set := revocation.NewSet()
	for _, r := range state.Revocations {
		entry, err := revocation.EntryOf(r)
		if err != nil {
			t.Fatal(err)
		}
		set.Add(entry)
	}
	return set
}

// A key's life: made, revoked, and another made under the same name, which works
// while the first stays dead.
func TestKeys(t *testing.T) {
	f := newFixture(t, nil)
	ctx := f.as(t, "security@shop")
	create := func(req *adminv1.CreateKeyRequest) (*adminv1.CreateKeyResponse, error) {
		return f.client.CreateKey(ctx, req)
	}
	first, err := create(&adminv1.CreateKeyRequest{Workspace: "shop", Name: "ci", Application: "app", Scopes: []string{"read"}, Ttl: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	stored := func() credential.Credential {
		t.Helper()
		resource, err := f.memory.GetCredential(t.Context(), "shop", "ci")
		if err != nil {
			t.Fatal(err)
		}
		one, err := credential.Of(resource)
		if err != nil {
			t.Fatal(err)
		}
		return one
	}
	one := stored()
	sum, ok := credential.Parse(first.Key)
	if !ok || sum != one.SHA256 || one.Scopes != "read" || one.Application != "app" || one.Expires < time.Now().Add(50*time.Minute).Unix() || one.Expires > time.Now().Add(time.Hour).Unix() {
		t.Fatalf("stored %+v of %s", one, first.Key)
	}
	if _, err := create(&adminv1.CreateKeyRequest{Workspace: "shop", Name: "ci", Application: "app"}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the name again: %v", err)
	}
	if _, err := f.client.RevokeKey(ctx, &adminv1.RevokeKeyRequest{Workspace: "shop", Name: "ci"}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.RevokeKey(ctx, &adminv1.RevokeKeyRequest{Workspace: "shop", Name: "ci"}); status.Code(err) != codes.NotFound {
		t.Errorf("revoked again: %v", err)
	}
	second, err := create(&adminv1.CreateKeyRequest{Workspace: "shop", Name: "ci", Application: "app"})
	if err != nil || second.Key == first.Key {
		t.Fatal(second, err)
	}
	two, set := stored(), f.denied(t)
	if kind, dead := set.Revoked(&revocation.Subject{Credential: one.ID}); !dead || kind != controlv1.RevocationKind_REVOCATION_KIND_CREDENTIAL {
		t.Error("the first key is not revoked")
	}
	if _, dead := set.Revoked(&revocation.Subject{Credential: two.ID}); dead {
		t.Error("the second key is revoked with the first")
	}
	if keys, revoked := f.view.Counts(); keys != 1 || revoked != 1 {
		t.Errorf("%d keys, %d revocations", keys, revoked)
	}
	for name, req := range map[string]*adminv1.CreateKeyRequest{
		"no application": {Workspace: "shop"}, "another's": {Workspace: "shop", Application: "other/app"}, "unknown": {Workspace: "shop", Application: "nothing"},
		"bad scope": {Workspace: "shop", Application: "app", Scopes: []string{"a b"}}, "no ttl": {Workspace: "shop", Application: "app", Ttl: durationpb.New(0)},
		"negative ttl": {Workspace: "shop", Application: "app", Ttl: durationpb.New(-1)}, "bad name": {Workspace: "shop", Name: "a/b", Application: "app"},
		"scope not the application's": {Workspace: "shop", Application: "app", Scopes: []string{"root"}},
	} {
		if resp, err := create(req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
}

// Nothing that lets somebody in is ever shown a second time, logged or kept in
// the history.
func TestSecretsStayInside(t *testing.T) {
	f := newFixture(t, nil)
	admin := f.as(t, "admin")
	key, err := f.client.CreateKey(admin, &adminv1.CreateKeyRequest{Workspace: "shop", Name: "ci", Application: "app"})
	if err != nil {
		t.Fatal(err)
	}
	token, err := f.client.MintToken(admin, &adminv1.MintTokenRequest{Subject: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	operator, err := f.client.CreateOperator(admin, &adminv1.CreateOperatorRequest{Operator: &adminv1.Operator{Name: "x", Role: adminv1.Role_ROLE_VIEWER}})
	if err != nil {
		t.Fatal(err)
	}
	hs := decode(t, `{apiVersion: portcullis.dev/v1, kind: Issuer, metadata: {workspace: other, name: hs}, spec: {issuer: "https://hs.example", algorithms: [HS256], hmacSecret: bmV3LXNlY3JldC1uZXctc2VjcmV0LW5ldy1zZWNyZXQtISE=}}`)
	plan, err := f.client.Plan(admin, &adminv1.PlanRequest{Change: upsert(hs...)})
	if err != nil {
		t.Fatal(err)
	}
	applied, err := f.client.Apply(admin, &adminv1.ApplyRequest{Change: upsert(hs...)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.RevokeKey(admin, &adminv1.RevokeKeyRequest{Workspace: "shop", Name: "ci"}); err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{"plan": plan.String(), "apply": applied.String()}
	for method, req := range map[string]any{
		"list": &adminv1.ListRequest{}, "credentials": &adminv1.ListRequest{Kind: "Credential"},
	} {
		resp, err := f.client.List(admin, req.(*adminv1.ListRequest))
		if err != nil {
			t.Fatal(err)
		}
		texts[method] = resp.String()
	}
	got, err := f.client.Get(admin, &adminv1.GetRequest{Kind: "Issuer", Workspace: "other", Name: "hs"})
	history, err2 := f.client.History(admin, &adminv1.HistoryRequest{})
	operators, err3 := f.client.ListOperators(admin, &adminv1.ListOperatorsRequest{})
	if err != nil || err2 != nil || err3 != nil {
		t.Fatal(err, err2, err3)
	}
	texts["get"], texts["history"], texts["operators"] = got.String(), history.String(), operators.String()
	texts["audit"] = fmt.Sprint(f.audit.taken())
	signature := token.Token[strings.LastIndex(token.Token, ".")+1:]
	for where, text := range texts {
		for _, secret := range []string{key.Key, signature, operator.Credential, hmacSecret, hs[0].GetIssuer().HmacSecret, f.credentials["admin"]} {
			if strings.Contains(text, secret) {
				t.Errorf("%s shows %s", where, secret)
			}
		}
	}
	if !strings.Contains(plan.String(), "(secret)") {
		t.Errorf("the plan does not say that a secret changes: %v", plan)
	}
}

func TestRevokeArguments(t *testing.T) {
	f := newFixture(t, nil)
	ctx := f.as(t, "security")
	for name, req := range map[string]*adminv1.RevokeRequest{
		"nothing": {}, "two": {Subject: "a", Client: "b"}, "three": {Jti: "a", Session: "b", Client: "c", Issuer: "local"},
		"unknown issuer": {Issuer: "nowhere"}, "unknown issuer beside": {Subject: "a", Issuer: "https://nowhere.example"},
		"jti with before": {Jti: "a", Before: timestamppb.Now()}, "future": {Subject: "a", Before: timestamppb.New(time.Now().Add(time.Minute))},
		"no time": {Subject: "a", Before: &timestamppb.Timestamp{Seconds: -1 << 62}}, "long reason": {Subject: "a", Reason: strings.Repeat("a", maxReason+1)},
	} {
		before := f.writes(t)
		if resp, err := f.client.Revoke(ctx, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
		if n := f.writes(t) - before - 1; n != 0 {
			t.Errorf("%s: written", name)
		}
	}
	now := time.Now()
	past := now.Add(-time.Hour)
	token := func(edit func(*revocation.Subject)) *revocation.Subject {
		s := &revocation.Subject{JTI: "j", Session: "s", Subject: "alice", Client: "c", Issuer: "https://shop.example", IssuedAt: now.Unix()}
		if edit != nil {
			edit(s)
		}
		return s
	}
	for name, c := range map[string]struct {
		req      *adminv1.RevokeRequest
		lifetime time.Duration // that of the longest-lived token it can hit
		hit      *revocation.Subject
		spared   *revocation.Subject
	}{
		"jti":       {&adminv1.RevokeRequest{Jti: "j"}, 48 * time.Hour, token(nil), token(func(s *revocation.Subject) { s.JTI = "other" })},
		"session":   {&adminv1.RevokeRequest{Session: "s"}, 48 * time.Hour, token(nil), token(func(s *revocation.Subject) { s.IssuedAt += 60 })},
		"subject":   {&adminv1.RevokeRequest{Subject: "alice"}, 48 * time.Hour, token(nil), token(func(s *revocation.Subject) { s.Subject = "bob" })},
		"of issuer": {&adminv1.RevokeRequest{Subject: "alice", Issuer: "shop/own"}, time.Hour, token(nil), token(func(s *revocation.Subject) { s.Issuer = "https://other.example" })},
		"client":    {&adminv1.RevokeRequest{Client: "c", Before: timestamppb.New(past)}, 48 * time.Hour, token(func(s *revocation.Subject) { s.IssuedAt = past.Unix() }), token(nil)},
		"issuer":    {&adminv1.RevokeRequest{Issuer: "https://shop.example"}, time.Hour, token(nil), token(func(s *revocation.Subject) { s.Issuer = "https://local.example" })},
		"local":     {&adminv1.RevokeRequest{Issuer: "local"}, 24 * time.Hour, token(func(s *revocation.Subject) { s.Issuer = "https://local.example" }), token(nil)},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil)
			resp, err := f.client.Revoke(f.as(t, "security"), c.req)
			if err != nil {
				t.Fatal(err)
			}
			// Longer than the token lives, with room for skew, and not for ever.
			if at := resp.ExpiresAt.AsTime(); at.Before(now.Add(c.lifetime+time.Minute)) || at.After(time.Now().Add(c.lifetime+10*time.Minute)) {
				t.Errorf("kept until %v, tokens live %v", at, c.lifetime)
			}
			set := f.denied(t)
			if _, dead := set.Revoked(c.hit); !dead {
				t.Errorf("%+v is not revoked", c.hit)
			}
			if _, dead := set.Revoked(c.spared); dead {
				t.Errorf("%+v is revoked", c.spared)
			}
			records := f.audit.taken()
			target := records[len(records)-1]["target"]
			if !strings.HasPrefix(target, "revoke ") || len(strings.Fields(target)) != 3 {
				t.Errorf("audited as %q", target)
			}
		})
	}
}

// The deny lane takes what the config lane refuses: no conflict holds it up.
func TestRevokeDoesNotConflict(t *testing.T) {
	var r *racing
	f := newFixture(t, func(s store.Store) store.Store { r = &racing{Store: s, left: 1}; return r })
	if _, err := f.client.Revoke(f.as(t, "security"), &adminv1.RevokeRequest{Subject: "a"}); err != nil || r.left != 1 {
		t.Errorf("%v, %d", err, r.left)
	}
}

func TestMintToken(t *testing.T) {
	f := newFixture(t, nil)
	ctx := f.as(t, "security")
	extra := func(m map[string]any) *structpb.Struct {
		s, err := structpb.NewStruct(m)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	many := map[string]any{}
	for i := range maxClaims + 1 {
		many[fmt.Sprint("c", i)] = i
	}
	refused := map[string]*adminv1.MintTokenRequest{
		"nobody": {}, "no such issuer": {Issuer: "nothing", Subject: "a"}, "not built in": {Issuer: "other/hs", Subject: "a"},
		"too long": {Issuer: "shop/own", Subject: "a", Ttl: durationpb.New(time.Hour + time.Second)}, "default too long": {Subject: "a", Ttl: durationpb.New(25 * time.Hour)},
		"too short": {Subject: "a", Ttl: durationpb.New(time.Millisecond)}, "negative": {Subject: "a", Ttl: durationpb.New(-time.Hour)}, "many claims": {Subject: "a", Claims: extra(many)},
	}
	for _, claim := range []string{"iss", "sub", "aud", "exp", "iat", "nbf", "jti", "scope", "client_id"} {
		refused["claim "+claim] = &adminv1.MintTokenRequest{Subject: "a", Claims: extra(map[string]any{claim: "x"})}
	}
	for name, req := range refused {
		if resp, err := f.client.MintToken(ctx, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
	resp, err := f.client.MintToken(ctx, &adminv1.MintTokenRequest{
		Issuer: "shop/own", Subject: "alice", Scopes: []string{"read", "write"}, Audiences: []string{"api"}, Ttl: durationpb.New(time.Minute), Claims: extra(map[string]any{"roles": []any{"x"}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(resp.Token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if claims["iss"] != "https://shop.example" || claims["sub"] != "alice" || claims["scope"] != "read write" || claims["jti"] != resp.Jti || resp.Jti == "" || int64(claims["exp"].(float64)) != resp.ExpiresAt.Seconds {
		t.Errorf("claims %v of %v", claims, resp)
	}
}

func TestJoinTokens(t *testing.T) {
	f := newFixture(t, nil)
	for _, ttl := range []time.Duration{0, -time.Hour, time.Millisecond, maxJoinTTL + time.Second} {
		if _, err := f.client.CreateJoinToken(f.as(t, "admin"), &adminv1.CreateJoinTokenRequest{Ttl: durationpb.New(ttl)}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("ttl %v: %v", ttl, err)
		}
	}
	resp, err := f.client.CreateJoinToken(f.as(t, "admin"), &adminv1.CreateJoinTokenRequest{})
	if err != nil || resp.Token == "" || time.Until(resp.ExpiresAt.AsTime()) > defaultJoinTTL {
		t.Errorf("%v %v", resp, err)
	}
	if text := fmt.Sprint(f.audit.taken()); strings.Contains(text, resp.Token) {
		t.Error("the audit log shows the token")
	}
}

// A fetched key set is written only for an issuer that still fetches.
func TestWriteKeySet(t *testing.T) {
	f := newFixture(t, nil)
	f.apply(t, upsert(decode(t, `{apiVersion: portcullis.dev/v1, kind: Issuer, metadata: {workspace: shop, name: idp}, spec: {issuer: "https://idp.example", jwksUri: "https://idp.example/keys"}}`)...))
	set := func(workspace, name string) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Workspace: workspace, Name: name}, Spec: &configv1.Resource_KeySet{KeySet: &configv1.KeySet{Problem: "down"}}}
	}
	for key, written := range map[*configv1.Resource]bool{set("shop", "idp"): true, set("shop", "own"): false, set("shop", "gone"): false, set("other", "idp"): false} {
		before := f.writes(t)
		if err := f.WriteKeySet(t.Context(), key, &configv1.Issuer{JwksUri: "https://idp.example/keys"}); err != nil {
			t.Error(err)
		}
		if got := f.writes(t)-before-1 > 0; got != written {
			t.Errorf("%v written: %v", key.Metadata, got)
		}
	}
	// A fetch that was under way while the issuer was moved elsewhere, and one that
	// was overtaken, write nothing.
	late := set("shop", "idp")
	late.GetKeySet().FetchedAt = timestamppb.Now()
	before := f.writes(t)
	if err := f.WriteKeySet(t.Context(), late, &configv1.Issuer{JwksUri: "https://taken-over.example/keys"}); err != nil {
		t.Error(err)
	}
	if got := f.writes(t) - before - 1; got > 0 {
		t.Error("keys of a URL that the issuer no longer names were written")
	}
}
