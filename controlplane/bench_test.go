package controlplane

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/secret"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const benchRoutes = 10_000

// cpuTime is what this process has used of the processors, the collector and the
// embedded etcd included.
func cpuTime(tb testing.TB) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// benchDocuments are routes and the upstream that they lead to; plain ones have no
// policies.
func benchDocuments(plain bool) []*configv1.Resource {
	meta := func(name string) *configv1.Metadata {
		return &configv1.Metadata{Workspace: config.DefaultWorkspace, Name: name}
	}
	all := []*configv1.Resource{{Metadata: meta("bulk"), Spec: &configv1.Resource_Upstream{
		Upstream: &configv1.Upstream{Endpoints: []*configv1.Endpoint{{Url: "http://127.0.0.1:9"}}},
	}}}
	for i := range benchRoutes {
		route := &configv1.Route{
			Public:   plain,
			Matches:  []*configv1.Match{{Path: &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: fmt.Sprintf("/bulk/%d", i)}}}},
			Timeouts: &configv1.Timeouts{Request: durationpb.New(10 * time.Second)},
			Backends: []*configv1.Backend{{Upstream: "bulk"}},
		}
		if !plain {
			route.Hostnames = []string{fmt.Sprintf("h%d.example.com", i%1000)}
			route.Policies = []*configv1.Policy{
				{Kind: &configv1.Policy_Jwt{Jwt: &configv1.JWT{Issuers: []string{"local"}, Audiences: []string{"https://api.example"}}}},
				{Kind: &configv1.Policy_Authorize{Authorize: &configv1.Authorize{Rules: []*configv1.AuthorizeRule{{When: "request.method == 'GET'", Scopes: []string{"read"}}}}}},
				{Kind: &configv1.Policy_RateLimit{RateLimit: &configv1.RateLimit{Key: "auth.client", Limits: []*configv1.Limit{{Name: "a", Requests: 20, Window: durationpb.New(time.Second)}}}}},
			}
		}
		all = append(all, &configv1.Resource{Metadata: meta(fmt.Sprintf("bulk-%05d", i)), Spec: &configv1.Resource_Route{Route: route}})
	}
	return all
}

// BenchmarkApply takes 10,000 routes in through the admin API into an embedded
// etcd and down the stream of one node, some or all of them changed.
func BenchmarkApply(b *testing.B) {
	for _, plain := range []bool{true, false} {
		for _, changed := range []int{0, 100, benchRoutes} {
			b.Run(fmt.Sprintf("plain=%v/changed=%d", plain, changed), func(b *testing.B) { benchmarkApply(b, plain, changed) })
		}
	}
}

func benchmarkApply(b *testing.B, plain bool, changed int) {
	sealer, err := secret.New(secret.NewKey())
	if err != nil {
		b.Fatal(err)
	}
	st, err := store.Open(b.Context(), store.Config{Dir: b.TempDir(), Sealer: sealer})
	if err != nil {
		b.Fatal(err)
	}
	r := newReplica(b, st, "cp1", "")
	newNode(b, r, "n1")
	documents := benchDocuments(plain)
	apply := func() {
		if _, err := r.client.Apply(r.as(b.Context()), &adminv1.ApplyRequest{
			Change: upsert(documents...), WaitFor: durationpb.New(time.Minute),
		}, grpc.MaxCallRecvMsgSize(1<<30), grpc.WaitForReady(true)); err != nil {
			b.Fatal(err)
		}
	}
	apply()
	next := 0
	change := func() {
		for range changed {
			r := proto.CloneOf(documents[1+next%benchRoutes])
			r.GetRoute().Timeouts.Request.Seconds++
			documents[1+next%benchRoutes] = r
			next++
		}
	}
	change()
	apply()
	b.ReportAllocs()
	before, n := cpuTime(b), 0
	for b.Loop() {
		change()
		apply()
		n++
	}
	b.ReportMetric(float64((cpuTime(b)-before).Milliseconds())/float64(n), "cpu-ms/op")
	b.Cleanup(func() { _ = st.Close() })
}
