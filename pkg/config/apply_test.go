package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// drawResource draws from few names, so that documents meet: they refer to each
// other, hide each other's names and match the same requests.
func drawResource(t *rapid.T) *configv1.Resource {
	workspace := rapid.SampledFrom([]string{"default", "w1", "w2"}).Draw(t, "workspace")
	name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
	meta := &configv1.Metadata{Workspace: workspace, Name: name}
	r := &configv1.Resource{Metadata: meta}
	switch rapid.IntRange(0, 11).Draw(t, "kind") {
	case 0:
		meta.Workspace, meta.Name = "", rapid.SampledFrom([]string{"w1", "w2", "default"}).Draw(t, "workspace name")
		r.Spec = &configv1.Resource_Workspace{Workspace: &configv1.Workspace{
			Policies: drawPolicies(t, 1), Hostnames: rapid.SampledFrom([][]string{nil, nil, {"*.example"}, {"a.example"}}).Draw(t, "workspace hosts")}}
	case 1:
		meta.Workspace, meta.Name = "default", "default"
		g := &configv1.Gateway{Policies: drawPolicies(t, 1)}
		for i := range rapid.IntRange(0, 2).Draw(t, "listeners") {
			g.Listeners = append(g.Listeners, &configv1.Listener{Name: fmt.Sprint("l", i), Tls: &configv1.ListenerTLS{
				Certificates: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 2, rapid.ID).Draw(t, "certificates")}})
		}
		r.Spec = &configv1.Resource_Gateway{Gateway: g}
	case 2, 3:
		r.Spec = &configv1.Resource_Policy{Policy: drawPolicy(t)}
	case 4:
		r.Spec = &configv1.Resource_Issuer{Issuer: &configv1.Issuer{
			Issuer: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "iss"), BuiltIn: rapid.IntRange(0, 9).Draw(t, "good") > 0}}
	case 5:
		r.Spec = &configv1.Resource_Upstream{Upstream: &configv1.Upstream{Endpoints: []*configv1.Endpoint{{
			Url: rapid.SampledFrom([]string{"http://a", "http://b"}).Draw(t, "url")}},
			Shared: workspace == DefaultWorkspace && rapid.IntRange(0, 3).Draw(t, "shared") > 0}}
	case 6:
		r.Spec = &configv1.Resource_KeySet{KeySet: &configv1.KeySet{Problem: rapid.SampledFrom([]string{"", "x"}).Draw(t, "problem")}}
	case 7:
		if rapid.IntRange(0, 3).Draw(t, "elsewhere") > 0 {
			meta.Workspace = DefaultWorkspace
		}
		pair := rapid.SampledFrom(drawnPairs()).Draw(t, "pair")
		r.Spec = &configv1.Resource_Certificate{Certificate: &configv1.Certificate{Certificate: pair[0], PrivateKey: pair[1]}}
	case 8:
		r.Spec = &configv1.Resource_IssuedCertificate{IssuedCertificate: &configv1.IssuedCertificate{Problem: rapid.SampledFrom([]string{"", "x"}).Draw(t, "problem")}}
	default:
		r.Spec = &configv1.Resource_Route{Route: drawRoute(t)}
	}
	return r
}

func drawRoute(t *rapid.T) *configv1.Route {
	route := &configv1.Route{
		Public:    rapid.Bool().Draw(t, "public"),
		Hostnames: rapid.SampledFrom([][]string{nil, {"a.example"}, {"a.example", "b.example"}}).Draw(t, "hosts"),
		Policies:  drawPolicies(t, 2),
		Backends:  []*configv1.Backend{{Upstream: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "upstream")}},
		Priority:  int32(rapid.IntRange(0, 2).Draw(t, "priority")),
	}
	for range rapid.IntRange(0, 2).Draw(t, "matches") {
		path := rapid.SampledFrom([]string{"/", "/a", "/{x}", "/{y}"}).Draw(t, "path")
		m := &configv1.Match{Methods: rapid.SampledFrom([][]string{nil, {"GET"}, {"GET", "POST"}, {"POST"}}).Draw(t, "methods")}
		if strings.Contains(path, "{") {
			m.Path = &configv1.PathMatch{Kind: &configv1.PathMatch_Template{Template: path}}
		} else {
			m.Path = &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: path}}
		}
		route.Matches = append(route.Matches, m)
	}
	return route
}

func drawPolicies(t *rapid.T, most int) []*configv1.Policy {
	var ps []*configv1.Policy
	for range rapid.IntRange(0, most).Draw(t, "policies") {
		ps = append(ps, drawPolicy(t))
	}
	return ps
}

func drawPolicy(t *rapid.T) *configv1.Policy {
	name := rapid.SampledFrom([]string{"a", "b", "c"})
	switch rapid.IntRange(0, 4).Draw(t, "policy") {
	case 0, 1:
		return &configv1.Policy{Kind: &configv1.Policy_Ref{Ref: name.Draw(t, "ref")}}
	case 2:
		return &configv1.Policy{Kind: &configv1.Policy_Jwt{Jwt: &configv1.JWT{
			Issuers: rapid.SliceOfNDistinct(name, 1, 2, rapid.ID).Draw(t, "issuers"), Audiences: []string{"aud"}}}}
	case 3:
		return &configv1.Policy{Kind: &configv1.Policy_ApiKey{ApiKey: &configv1.APIKey{}}}
	}
	return &configv1.Policy{Kind: &configv1.Policy_RateLimit{RateLimit: &configv1.RateLimit{
		Key:    rapid.SampledFrom([]string{"", "auth.client", "auth.clent"}).Draw(t, "key"),
		Limits: []*configv1.Limit{{Requests: 1, Window: durationpb.New(1e9)}}}}}
}

// drawnPairs are two certificates with their keys, and one with another's.
var drawnPairs = sync.OnceValue(func() [][2]string {
	a, b := selfSigned("a.example"), selfSigned("b.example")
	return [][2]string{a, b, {a[0], b[1]}}
})

func selfSigned(host string) [2]string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return [2]string{
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
	}
}

// seed is a state in which most references hold.
const seed = `
apiVersion: portcullis.dev/v1
kind: Workspace
metadata: {name: w1}
---
apiVersion: portcullis.dev/v1
kind: Workspace
metadata: {name: w2}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: a}
spec: {endpoints: [{url: http://a}], shared: true}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: b}
spec: {endpoints: [{url: http://b}], shared: true}
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: a}
spec: {issuer: a, builtIn: true}
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: b}
spec: {issuer: b, builtIn: true}
---
apiVersion: portcullis.dev/v1
kind: Policy
metadata: {name: a}
spec: {jwt: {issuers: [a], audiences: [x]}}
---
apiVersion: portcullis.dev/v1
kind: Policy
metadata: {name: b}
spec: {ref: a}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: w1, name: seed}
spec:
  matches: [{path: {exact: /seed}}]
  policies: [{ref: b}]
  backends: [{upstream: a}]
`

// TestApplyEqualsCheck draws sequences of changes and holds Apply against Check of
// the whole: the same verdict, the same problems, the same result, and no route
// affected that was not named.
func TestApplyEqualsCheck(t *testing.T) {
	whole := decode(t, seed)
	for i, name := range []string{"a", "b"} {
		whole = append(whole, &configv1.Resource{Metadata: &configv1.Metadata{Name: name}, Spec: &configv1.Resource_Certificate{
			Certificate: &configv1.Certificate{Certificate: drawnPairs()[i][0], PrivateKey: drawnPairs()[i][1]}}})
	}
	start, err := Check(whole)
	if err != nil {
		t.Fatal(err)
	}
	accepted, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		c := start
		state := map[Key]*configv1.Resource{}
		for r := range c.All() {
			state[KeyOf(r)] = r
		}
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			d := drawDelta(t, state)
			next := map[Key]*configv1.Resource{}
			for k, r := range state {
				next[k] = r
			}
			for _, k := range d.Deletes {
				delete(next, k)
			}
			for _, r := range d.Upserts {
				next[KeyOf(r)] = r
			}
			var all []*configv1.Resource
			for _, r := range next {
				all = append(all, r)
			}
			changes(t, c, all)
			want, wantErr := Check(all)
			d.Owned = rapid.Bool().Draw(t, "owned")
			got, affected, gotErr := c.Apply(d)
			if errText(wantErr) != errText(gotErr) {
				t.Fatalf("Check says:\n%s\nApply says:\n%s", errText(wantErr), errText(gotErr))
			}
			if gotErr != nil {
				refused++
				if got.Digest() != c.Digest() || got.Len() != c.Len() || !affected.Empty() {
					t.Fatal("a refused change changed something")
				}
				continue
			}
			accepted++
			same(t, got, want)
			sound(t, c, got, affected)
			recalled(t, c, d, got, affected)
			c, state = got, next
		}
	})
	t.Logf("%d changes accepted, %d refused", accepted, refused)
	if accepted == 0 || refused == 0 {
		t.Error("the draw is one-sided")
	}
}

// changes holds Changes against a comparison field by field.
func changes(t *rapid.T, c Checked, all []*configv1.Resource) {
	var want []*configv1.Resource
	for _, r := range all {
		if have, ok := c.Get(KeyOf(r)); !ok || !proto.Equal(have, normalize(r)) {
			want = append(want, r)
		}
	}
	if got := c.Changes(all); !slices.Equal(got, want) {
		t.Fatalf("%d of %d differ; want %d", len(got), len(all), len(want))
	}
}

// recalled puts a change once more, which is known, and then one more document,
// which is not.
func recalled(t *rapid.T, c Checked, d Delta, first Checked, affected Affected) {
	again, affectedAgain, err := c.Apply(Delta{Upserts: slices.Clone(d.Upserts), Deletes: slices.Clone(d.Deletes)})
	if err != nil || again.docs.root != first.docs.root || !reflect.DeepEqual(affectedAgain, affected) {
		t.Fatalf("the same change again: %v, %v; want %v", affectedAgain, err, affected)
	}
	more := d
	more.Upserts = append(slices.Clone(d.Upserts), &configv1.Resource{
		Metadata: &configv1.Metadata{Name: "more"}, Spec: &configv1.Resource_Application{Application: &configv1.Application{}}})
	if with, _, err := c.Apply(more); err != nil || with.Len() != first.Len()+1 || with.Digest() == first.Digest() {
		t.Fatalf("one document more: %d, %v; want %d", with.Len(), err, first.Len()+1)
	}
}

func drawDelta(t *rapid.T, state map[Key]*configv1.Resource) Delta {
	var d Delta
	put := map[Key]bool{}
	for range rapid.IntRange(0, 3).Draw(t, "upserts") {
		if r := drawResource(t); !put[KeyOf(r)] {
			put[KeyOf(r)] = true
			d.Upserts = append(d.Upserts, r)
		}
	}
	var keys []Key
	for k := range state {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, Key.Compare)
	for _, k := range keys {
		if !put[k] && rapid.IntRange(0, 11).Draw(t, "delete") == 0 {
			d.Deletes = append(d.Deletes, k)
		}
	}
	return d
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func same(t *rapid.T, got, want Checked) {
	if got.Len() != want.Len() || got.Digest() != want.Digest() {
		t.Fatalf("%d resources %x; want %d %x", got.Len(), got.Digest(), want.Len(), want.Digest())
	}
	a, b := slices.Collect(got.All()), slices.Collect(want.All())
	for i := range b {
		if !proto.Equal(a[i], b[i]) {
			t.Fatalf("resource %d: %v; want %v", i, a[i], b[i])
		}
	}
	if got.users.size != want.users.size || got.patterns.size != want.patterns.size {
		t.Fatalf("indexes: %d and %d; want %d and %d", got.users.size, got.patterns.size, want.users.size, want.patterns.size)
	}
	for k, users := range want.users.all() {
		if have, _ := got.users.get(k); have.size != users.size {
			t.Fatalf("users of %s: %d; want %d", k, have.size, users.size)
		}
	}
}

// compiled stands for a route's compiled form: everything that it is made from.
func compiled(c Checked, k Key) string {
	r, ok := c.Get(k)
	if !ok {
		return "none"
	}
	var b strings.Builder
	fmt.Fprintln(&b, r)
	for _, p := range c.Policies(k) {
		fmt.Fprintln(&b, p.Origin, p.Workspace, p.Policy)
		for _, name := range p.Policy.GetJwt().GetIssuers() {
			issuer, _ := c.Resolve(KindIssuer, p.Workspace, name)
			fmt.Fprintln(&b, issuer)
		}
	}
	for _, backend := range r.GetRoute().GetBackends() {
		up, _ := c.Resolve(KindUpstream, k.Workspace, backend.GetUpstream())
		fmt.Fprintln(&b, up)
	}
	return b.String()
}

// sound checks that every route whose compiled form differs is in Affected.
func sound(t *rapid.T, before, after Checked, a Affected) {
	named := map[Key]bool{}
	for _, k := range a.Routes {
		named[k] = true
	}
	for _, c := range []Checked{before, after} {
		for k := range c.OfKind(KindRoute) {
			if !named[k] && !a.All && compiled(before, k) != compiled(after, k) {
				t.Fatalf("%s differs and is not affected (%+v)", k, a)
			}
			_, was := before.Get(k)
			_, is := after.Get(k)
			if was != is && !named[k] {
				t.Fatalf("%s came or went and is not named", k)
			}
		}
	}
	for _, kind := range []string{KindCertificate, KindIssuedCertificate} {
		for _, c := range []Checked{before, after} {
			for k := range c.OfKind(kind) {
				was, _ := before.Get(k)
				is, _ := after.Get(k)
				if proto.Equal(was, is) == slices.Contains(a.Certificates, k) {
					t.Fatalf("%s: affected %v", k, a.Certificates)
				}
			}
		}
	}
	gateway := Key{KindGateway, DefaultWorkspace, "default"}
	was, _ := before.Get(gateway)
	is, _ := after.Get(gateway)
	if !proto.Equal(was, is) && !a.Gateway {
		t.Fatal("the Gateway differs and is not affected")
	}
	if !slices.IsSortedFunc(a.Routes, Key.Compare) {
		t.Fatal("routes are not sorted")
	}
}

func TestAffected(t *testing.T) {
	base, err := Check(decode(t, shop))
	if err != nil {
		t.Fatal(err)
	}
	route := []Key{{KindRoute, "shop", "orders"}}
	pair := drawnPairs()[0]
	certified := "kind: Certificate\nmetadata: {name: c}\nspec: {certificate: " + strconv.Quote(pair[0]) + ", privateKey: " + strconv.Quote(pair[1]) + "}"
	for name, c := range map[string]struct {
		change  string
		deletes []Key
		want    Affected
	}{
		"nothing":            {change: shop, want: Affected{}},
		"an application":     {change: "kind: Application\nmetadata: {name: a}", want: Affected{Applications: []Key{{KindApplication, "default", "a"}}}},
		"an upstream in use": {change: "kind: Upstream\nmetadata: {workspace: shop, name: orders}\nspec: {endpoints: [{url: http://z}]}", want: Affected{Routes: route, Upstreams: []Key{{KindUpstream, "shop", "orders"}}}},
		"one not in use":     {change: "kind: Upstream\nmetadata: {name: orders}\nspec: {endpoints: [{url: http://z}]}", want: Affected{Routes: route, Upstreams: []Key{{KindUpstream, "default", "orders"}}}},
		"a hiding policy":    {change: "kind: Policy\nmetadata: {workspace: shop, name: office-hours}\nspec: {authorize: {rules: [{roles: [a]}]}}", want: Affected{Routes: route}},
		"a shared policy":    {change: "kind: Policy\nmetadata: {name: office-hours}\nspec: {authorize: {rules: [{roles: [a]}]}}", want: Affected{Routes: route}},
		"its issuer":         {change: "kind: Issuer\nmetadata: {name: local}\nspec: {issuer: other, builtIn: true}", want: Affected{Routes: route, Issuers: []Key{{KindIssuer, "default", "local"}}}},
		"its keys":           {change: "kind: KeySet\nmetadata: {name: local}", want: Affected{KeySets: []Key{{KindKeySet, "default", "local"}}}},
		"the workspace":      {change: "kind: Workspace\nmetadata: {name: shop}", want: Affected{Routes: route}},
		"the gateway":        {deletes: []Key{{KindGateway, "default", "default"}}, want: Affected{All: true, Gateway: true}},
		"the route is gone":  {deletes: route, want: Affected{Routes: route}},
		"a certificate":      {change: certified, want: Affected{Certificates: []Key{{KindCertificate, "default", "c"}}}},
		"one that is issued": {change: "kind: IssuedCertificate\nmetadata: {name: c}", want: Affected{Certificates: []Key{{KindIssuedCertificate, "default", "c"}}}},
		"what is not there":  {deletes: []Key{{KindRoute, "shop", "none"}}, want: Affected{}},
	} {
		t.Run(name, func(t *testing.T) {
			d := Delta{Deletes: c.deletes}
			if c.change == shop {
				d.Upserts = decode(t, shop)
			} else if c.change != "" {
				d.Upserts = decode(t, "apiVersion: portcullis.dev/v1\n"+c.change)
			}
			_, got, err := base.Apply(d)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("%+v; want %+v", got, c.want)
			}
		})
	}
}

func TestApplyRefusesWhatBreaksOthers(t *testing.T) {
	base, err := Check(decode(t, shop))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key  Key
		want string
	}{
		{Key{KindUpstream, "shop", "orders"}, `Route shop/orders: spec.backends[0].upstream: Upstream "orders" does not exist in workspace "shop" or "default"`},
		{Key{KindPolicy, "default", "office-hours"}, `Route shop/orders: spec.policies[3].ref: Policy "office-hours" does not exist`},
		{Key{KindIssuer, "default", "local"}, `spec.policies[0].jwt.issuers[0]: Issuer "local" does not exist`},
		{Key{KindWorkspace, "", "shop"}, `Upstream shop/orders: metadata.workspace: Workspace "shop" does not exist`},
	} {
		_, _, err := base.Apply(Delta{Deletes: []Key{c.key}})
		var problems Problems
		if !errors.As(err, &problems) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("delete %s: %v; want %s", c.key, err, c.want)
		}
	}
	up := decode(t, "apiVersion: portcullis.dev/v1\nkind: Upstream\nmetadata: {name: a}\nspec: {endpoints: [{url: http://a}]}")
	if _, _, err := base.Apply(Delta{Upserts: up, Deletes: []Key{KeyOf(up[0])}}); err == nil {
		t.Error("put and deleted by one change")
	}
	if _, _, err := base.Apply(Delta{Upserts: []*configv1.Resource{nil}}); err == nil {
		t.Error("a nil resource")
	}
	if _, _, err := base.Apply(Delta{Upserts: []*configv1.Resource{{}}}); err == nil {
		t.Error("an empty resource")
	}
}

func TestCheckClones(t *testing.T) {
	rs := decode(t, shop)
	c, err := Check(rs)
	if err != nil {
		t.Fatal(err)
	}
	before := c.Digest()
	rs[len(rs)-1].GetRoute().Public = true
	r, _ := c.Get(KeyOf(rs[len(rs)-1]))
	if r.GetRoute().GetPublic() || Digest(r) == Digest(rs[len(rs)-1]) || c.Digest() != before {
		t.Error("Check kept its input")
	}
}

func TestUnknownFieldsAreRefused(t *testing.T) {
	for i, spoil := range []func(*configv1.Resource){
		func(r *configv1.Resource) { r.ProtoReflect().SetUnknown([]byte{0xf8, 0x7f, 1}) },
		func(r *configv1.Resource) { r.GetRoute().Policies[0].ProtoReflect().SetUnknown([]byte{0xf8, 0x7f, 1}) },
		func(r *configv1.Resource) { r.GetRoute().Revocation.OnStale = 77 },
		func(r *configv1.Resource) { r.GetRoute().Policies[0].Kind = nil },
		func(r *configv1.Resource) { r.Spec = nil },
	} {
		rs := decode(t, shop)
		spoil(rs[len(rs)-1])
		_, err := Check(rs)
		if err == nil {
			t.Errorf("%d: accepted", i)
		} else {
			t.Log(err)
		}
	}
}

func TestDigestIsStable(t *testing.T) {
	var b bytes.Buffer
	rs := decode(t, shop+everything)
	for _, r := range rs {
		fmt.Fprintf(&b, "%x %s\n", Digest(r), KeyOf(r))
	}
	golden(t, "digests.txt", b.String())
	r := proto.Clone(rs[2]).(*configv1.Resource)
	r.Metadata.Workspace = ""
	if Digest(r) != Digest(rs[2]) {
		t.Error("a workspace left out is the default one")
	}
}

func TestTreeIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var old, now tree[Key, int]
		want, oldWant := map[Key]int{}, map[Key]int{}
		x := new(txn)
		for i := range rapid.IntRange(0, 200).Draw(t, "steps") {
			k := Key{KindRoute, "w", fmt.Sprint(rapid.IntRange(0, 40).Draw(t, "key"))}
			switch rapid.IntRange(0, 9).Draw(t, "do") {
			case 0: // publish
				old, x = now, new(txn)
				oldWant = map[Key]int{}
				for k, v := range want {
					oldWant[k] = v
				}
			case 1, 2, 3:
				_, had := want[k]
				if now.remove(x, k) != had {
					t.Fatal("remove")
				}
				delete(want, k)
			default:
				now.put(x, k, i)
				want[k] = i
			}
		}
		for _, c := range []struct {
			tree tree[Key, int]
			want map[Key]int
		}{{now, want}, {old, oldWant}} {
			var keys []Key
			for k, v := range c.tree.all() {
				if c.want[k] != v {
					t.Fatalf("%s = %d; want %d", k, v, c.want[k])
				}
				keys = append(keys, k)
			}
			if len(keys) != len(c.want) || c.tree.size != len(c.want) || !slices.IsSortedFunc(keys, Key.Compare) {
				t.Fatalf("%d of %d keys, size %d", len(keys), len(c.want), c.tree.size)
			}
			from := Key{KindRoute, "w", "2"}
			n := 0
			for k := range c.tree.from(from) {
				if k.Compare(from) < 0 {
					t.Fatal("from")
				}
				n++
			}
			for k := range c.want {
				if k.Compare(from) >= 0 {
					n--
				}
			}
			if n != 0 {
				t.Fatal("from left some out")
			}
		}
	})
}
