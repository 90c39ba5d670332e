package config

import (
	"bytes"
	"fmt"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// manyRoutes returns n routes and what they refer to.
func manyRoutes(n int) []*configv1.Resource {
	rs := []*configv1.Resource{
		{Metadata: &configv1.Metadata{Name: "local", Workspace: "default"}, Spec: &configv1.Resource_Issuer{Issuer: &configv1.Issuer{Issuer: "local", BuiltIn: true}}},
	}
	for i := range 100 {
		rs = append(rs, &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "default", Name: fmt.Sprint("up", i)},
			Spec: &configv1.Resource_Upstream{Upstream: &configv1.Upstream{Endpoints: []*configv1.Endpoint{{Url: "http://127.0.0.1:9000"}}}}})
	}
	for i := range n {
		rs = append(rs, oneRoute(i))
	}
	return rs
}

func oneRoute(i int) *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "default", Name: fmt.Sprint("route-", i)},
		Spec: &configv1.Resource_Route{Route: &configv1.Route{
			Hostnames: []string{fmt.Sprintf("h%d.example.com", i%1000)},
			Matches:   []*configv1.Match{{Path: &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: fmt.Sprintf("/svc/%d", i)}}, Methods: []string{"GET", "POST"}}},
			Policies: []*configv1.Policy{
				{Kind: &configv1.Policy_Jwt{Jwt: &configv1.JWT{Issuers: []string{"local"}, Audiences: []string{"https://api.example"}}}},
				{Kind: &configv1.Policy_Authorize{Authorize: &configv1.Authorize{Rules: []*configv1.AuthorizeRule{{When: "request.method == 'GET'", Scopes: []string{"read"}}}}}},
				{Kind: &configv1.Policy_RateLimit{RateLimit: &configv1.RateLimit{Key: "auth.client", Limits: []*configv1.Limit{{Name: "a", Requests: 20, Window: durationpb.New(1e9)}}}}},
			},
			Backends: []*configv1.Backend{{Upstream: fmt.Sprint("up", i%100)}},
		}},
	}
}

func BenchmarkApplyOneOf100k(b *testing.B) {
	c, err := Check(manyRoutes(100_000))
	if err != nil {
		b.Fatal(err)
	}
	r := oneRoute(5000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r.GetRoute().Priority = int32(i + 1)
		next, affected, err := c.Apply(Delta{Upserts: []*configv1.Resource{r}})
		if err != nil || len(affected.Routes) != 1 {
			b.Fatal(affected, err)
		}
		c = next
	}
}

func BenchmarkCheck10k(b *testing.B) {
	rs := manyRoutes(10_000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Check(rs); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode1k(b *testing.B) {
	var text bytes.Buffer
	if err := EncodeYAML(&text, manyRoutes(1000)...); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(text.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode("bench.yaml", text.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApply10k puts 10,000 routes of which some differ, all of them each time.
func BenchmarkApply10k(b *testing.B) {
	for _, changed := range []int{0, 100, 10_000} {
		b.Run(fmt.Sprint("changed=", changed), func(b *testing.B) {
			rs := manyRoutes(10_000)
			c, err := Check(rs)
			if err != nil {
				b.Fatal(err)
			}
			routes := rs[len(rs)-10_000:]
			b.ReportAllocs()
			for n := 1; b.Loop(); n++ {
				for i := range changed {
					r := oneRoute(i)
					r.GetRoute().Priority = int32(n)
					routes[i] = r
				}
				if c, _, err = c.Apply(Delta{Upserts: rs, Owned: true}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
