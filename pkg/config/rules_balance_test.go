package config

import (
	"strings"
	"testing"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func TestUpstreamBalance(t *testing.T) {
	const names = `endpoints: [{url: "http://a.example", resolve: addresses}]`
	for spec, want := range map[string]string{
		`endpoints: [{url: "http://a.example:80", resolve: addresses, zone: eu-1a}]`: "",
		`endpoints: [{url: "http://10.0.0.1:80", resolve: addresses}]`:               "nothing to resolve in an address",
		`endpoints: [{url: "https://[2001:db8::1]", resolve: addresses}]`:            "nothing to resolve in an address",
		`endpoints: [{url: "http://a.example/x", resolve: addresses}]`:               "without path",
		`endpoints: [{url: "https://_https._tcp.a.example", resolve: service}]`:      "",
		`endpoints: [{url: "http://orders", resolve: service}]`:                      "",
		`endpoints: [{url: "http://_http._tcp.a.example:80", resolve: service}]`:     "expected no port, since SRV records bring their own",
		`endpoints: [{url: "http://10.0.0.1", resolve: service}]`:                    "of SRV records",
		`endpoints: [{url: "http://_.a", resolve: service}]`:                         "of SRV records",
		`endpoints: [{url: "http://a.example/x", resolve: service}]`:                 "of SRV records",
		`endpoints: [{url: "http://u@a.example", resolve: service}]`:                 "of SRV records",
		`endpoints: [{url: "http://", resolve: service}]`:                            "of SRV records",
		`endpoints: [{url: "tcp://a.example", resolve: service}]`:                    "of SRV records",
		`endpoints: [{url: "http://_http._tcp.a.example"}]`:                          "no lower-case host name",
		`endpoints: [{url: "http://a", zone: "a\u0007b"}]`:                           "spec.endpoints[0].zone",
		`{endpoints: [{url: "http://a"}], dns: {refresh: 5s}}`:                       "spec.dns: has no effect: expected an endpoint with resolve",
		`{` + names + `, dns: {refresh: 1s, server: "10.0.0.2:53"}}`:                 "",
		`{` + names + `, dns: {refresh: 1ms}}`:                                       "spec.dns.refresh",
		`{` + names + `, dns: {server: "10.0.0.2"}}`:                                 "spec.dns.server: is \"10.0.0.2\": expected address:port",
		`{` + names + `, dns: {server: "dns.example:53"}}`:                           "spec.dns.server",
		`{` + names + `, dns: {server: "10.0.0.2:0"}}`:                               "spec.dns.server",
	} {
		if strings.HasPrefix(spec, "endpoints") {
			spec = "{" + spec + "}"
		}
		says(t, spec, balancing(t, spec), want)
	}
}

func TestBalance(t *testing.T) {
	for balance, want := range map[string]string{
		`{}`: "",
		`{algorithm: round_robin, slowStart: 30s, zoneAware: true, affinity: {}}`:                                   "",
		`{algorithm: ring_hash, hash: [{header: X-Tenant}, {cookie: sid}, {claim: org.id}, {address: true}]}`:       "",
		`{algorithm: bounded_load, loadFactor: 1, hash: [{claim: "https://x.example/id"}], affinity: {cookie: at}}`: "",
		`{affinity: {cookie: "a b"}}`:                                                "spec.balance.affinity.cookie",
		`{affinity: {maxAge: 0s}}`:                                                   "spec.balance.affinity.maxAge",
		`{affinity: {maxAge: 401d}}`:                                                 "spec.balance.affinity.maxAge",
		`{hash: [{address: true}]}`:                                                  `spec.balance.hash: has no effect: expected algorithm to be "ring_hash" or "bounded_load"`,
		`{algorithm: random, hash: [{address: true}]}`:                               "spec.balance.hash: has no effect",
		`{algorithm: ring_hash, loadFactor: 1.5}`:                                    `spec.balance.loadFactor: has no effect: expected algorithm to be "bounded_load"`,
		`{algorithm: bounded_load, loadFactor: 0.9}`:                                 "spec.balance.loadFactor: is 0.9: expected 1 to 100",
		`{algorithm: bounded_load, loadFactor: 1000}`:                                "spec.balance.loadFactor",
		`{slowStart: 1ms}`:                                                           "spec.balance.slowStart",
		`{algorithm: ring_hash, zoneAware: true}`:                                    "spec.balance.zoneAware: contradicts the algorithm",
		`{algorithm: ring_hash, hash: [{address: true}, {header: a}]}`:               "spec.balance.hash[1]: is never looked at",
		`{algorithm: ring_hash, hash: [{address: false}]}`:                           "spec.balance.hash[0].address",
		`{algorithm: ring_hash, hash: [{}]}`:                                         "spec.balance.hash[0]: is empty",
		`{algorithm: ring_hash, hash: [{header: "a b"}]}`:                            "spec.balance.hash[0].header",
		`{algorithm: ring_hash, hash: [{header: x_a}]}`:                              "no field of a request as the upstream gets it",
		`{algorithm: ring_hash, hash: [{header: Host}]}`:                             "no field of a request",
		`{algorithm: ring_hash, hash: [{header: Connection}]}`:                       "no field of a request",
		`{algorithm: ring_hash, hash: [{cookie: "a;b"}]}`:                            "spec.balance.hash[0].cookie",
		`{algorithm: ring_hash, hash: [{claim: ""}]}`:                                "spec.balance.hash[0].claim",
		`{algorithm: ring_hash, hash: [` + strings.Repeat("{header: a}, ", 9) + `]}`: "spec.balance.hash: has 9 entries",
	} {
		says(t, balance, balancing(t, `{endpoints: [{url: "http://a", zone: z}], balance: `+balance+`}`), want)
	}
	says(t, "no zones", balancing(t, `{endpoints: [{url: "http://a"}], balance: {zoneAware: true}}`), "spec.balance.zoneAware: has no effect: expected endpoints with zone")
}

// balancing returns what the rules of endpoints and balancing say of an Upstream.
func balancing(t *testing.T, spec string) string {
	t.Helper()
	docs, err := Decode("t.yaml", []byte("apiVersion: portcullis.dev/v1\nkind: Upstream\nmetadata: {name: x}\nspec: "+spec+"\n"))
	if err != nil {
		return err.Error()
	}
	u := docs[0].Resource.GetUpstream()
	r := report{key: KeyOf(docs[0].Resource)}
	for _, e := range u.GetEndpoints() {
		if why := badEndpoint(e); why != "" {
			r.fail("spec.endpoints.url", "%s", why)
		}
	}
	r.upstreamBalance(u)
	return errText(r.problems.sorted())
}

func TestSubsets(t *testing.T) {
	docs := decode(t, `
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec:
  endpoints:
    - {url: "http://a", labels: {version: "1", rack: x}}
    - {url: "http://b", labels: {version: "2"}}
    - {url: "http://c", labels: {version: "3"}, weight: 0}
`)
	c := Checked{}
	c.docs.put(&txn{}, KeyOf(docs[0]), &entry{resource: docs[0]})
	for _, tc := range []struct {
		subset map[string]string
		want   string
	}{
		{nil, ""},
		{map[string]string{"version": "1"}, ""},
		{map[string]string{"version": "1", "rack": "x"}, ""},
		{map[string]string{"version": "2", "rack": "x"}, `spec.backends[0].subset: selects no endpoint of Upstream "up"`},
		{map[string]string{"version": "3"}, "selects no endpoint"},
		{map[string]string{"rack": ""}, "selects no endpoint"},
	} {
		r := report{key: Key{KindRoute, DefaultWorkspace, "r"}}
		r.subsets(c, &configv1.Route{Backends: []*configv1.Backend{{Upstream: "up", Subset: tc.subset}}})
		says(t, "subset", errText(r.problems.sorted()), tc.want)
	}
	two := []*configv1.Backend{{Upstream: "up", Subset: map[string]string{"version": "1"}}, {Upstream: "up", Subset: map[string]string{"version": "2"}}}
	r := report{}
	r.backends("spec.backends", two)
	says(t, "two subsets of one upstream", errText(r.problems.sorted()), "")
	two[1].Subset["version"] = "1"
	r.backends("spec.backends", two)
	says(t, "the same twice", errText(r.problems.sorted()), "spec.backends[1].upstream: \"up\" repeats backends[0]")
}
