package config

import (
	"strings"
	"testing"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// resilience returns what the rules of resilience say of a spec in YAML.
func resilience(t *testing.T, kind, spec string) string {
	t.Helper()
	docs, err := Decode("t.yaml", []byte("apiVersion: portcullis.dev/v1\nkind: "+kind+"\nmetadata: {name: x}\nspec: "+spec+"\n"))
	if err != nil {
		return err.Error()
	}
	r := report{key: KeyOf(docs[0].Resource)}
	if u := docs[0].Resource.GetUpstream(); u != nil {
		r.upstreamResilience(u)
	} else {
		r.routeResilience(docs[0].Resource.GetRoute())
	}
	return errText(r.problems.sorted())
}

func TestUpstreamResilience(t *testing.T) {
	for spec, want := range map[string]string{
		`{}`:                            "",
		`{healthCheck: {tcp: {}}}`:      "",
		`{healthCheck: {interval: 1s}}`: `spec.healthCheck: says not how to ask: expected "http", "grpc" or "tcp"`,
		`{healthCheck: {grpc: {service: shop.v1.Orders}, interval: 100ms, timeout: 1m, healthy: 1, unhealthy: 1000}}`: "",
		`{healthCheck: {grpc: {service: "a b"}}}`:                                                    "spec.healthCheck.grpc.service",
		`{healthCheck: {http: {path: "/ready?deep=1", host: "a.example:80", statuses: [200, 204]}}}`: "",
		`{healthCheck: {http: {path: ready}}}`:                                                       "spec.healthCheck.http.path",
		`{healthCheck: {http: {path: "/a?b c"}}}`:                                                    "without spaces",
		`{healthCheck: {http: {path: "/a?b#c"}}}`:                                                    "without spaces and fragment",
		`{healthCheck: {http: {host: "A.example"}}}`:                                                 "spec.healthCheck.http.host",
		`{healthCheck: {http: {host: "a.example:0"}}}`:                                               "spec.healthCheck.http.host",
		`{healthCheck: {http: {host: "a.example:"}}}`:                                                "spec.healthCheck.http.host",
		`{healthCheck: {http: {statuses: [200, 100]}}}`:                                              "spec.healthCheck.http.statuses[1]: is 100: expected a status, 200 to 599",
		`{healthCheck: {http: {statuses: [200, 200]}}}`:                                              "repeats [0]",
		`{healthCheck: {tcp: {}, interval: 1ms}}`:                                                    "spec.healthCheck.interval",
		`{healthCheck: {tcp: {}, timeout: 1h}}`:                                                      "spec.healthCheck.timeout",
		`{healthCheck: {tcp: {}, healthy: 1001}}`:                                                    "spec.healthCheck.healthy: is 1001: expected at most 1000",
		`{healthCheck: {tcp: {}, unhealthy: 1001}}`:                                                  "spec.healthCheck.unhealthy",
		`{outlierDetection: {}}`:                                                                     "",
		`{outlierDetection: {failureRatio: 0.1, maxEjected: 0, ejection: 5m}}`:                       "",
		`{outlierDetection: {failureRatio: 0}}`:                                                      "would take out every endpoint",
		`{outlierDetection: {failureRatio: 1.5}}`:                                                    "spec.outlierDetection.failureRatio: is 1.5: expected 0 to 1",
		`{outlierDetection: {maxEjected: -1}}`:                                                       "spec.outlierDetection.maxEjected",
		`{outlierDetection: {ejection: 6m}}`:                                                         "spec.outlierDetection.maxEjection: is 5m, less than ejection, 6m",
		`{outlierDetection: {maxEjection: 5s}}`:                                                      "spec.outlierDetection.maxEjection: is 5s, less than ejection, 10s",
		`{outlierDetection: {interval: 1ms}}`:                                                        "spec.outlierDetection.interval",
		`{circuitBreaker: {}}`:                                                                       "bounds nothing",
		`{circuitBreaker: {maxPending: 1}}`:                                                          "",
		`{adaptiveConcurrency: {}}`:                                                                  "",
		`{adaptiveConcurrency: {max: 5}}`:                                                            "spec.adaptiveConcurrency.max: is 5, less than min, 10",
		`{adaptiveConcurrency: {min: 2000}}`:                                                         "is 1000, less than min, 2000",
		`{adaptiveConcurrency: {min: 2, max: 2}}`:                                                    "",
		`{adaptiveConcurrency: {max: 2000000}}`:                                                      "spec.adaptiveConcurrency.max: is 2000000: expected at most 1000000",
		`{retryBudget: {ratio: 0, min: 0}}`:                                                          "",
		`{retryBudget: {ratio: 2}}`:                                                                  "spec.retryBudget.ratio: is 2: expected 0 to 1",
		`{retryBudget: {min: 100000}}`:                                                               "spec.retryBudget.min",
		`{panicThreshold: 0}`:                                                                        "",
		`{panicThreshold: 1.01}`:                                                                     "spec.panicThreshold: is 1.01: expected 0 to 1",
	} {
		says(t, spec, resilience(t, "Upstream", spec), want)
	}
}

func TestRouteResilience(t *testing.T) {
	for spec, want := range map[string]string{
		`{}`:            "",
		`{retries: {}}`: "",
		`{retries: {attempts: 5, on: [reset, unavailable, server_error], statuses: [409, 599], nonIdempotent: true, backoff: 10s}}`: "",
		`{retries: {attempts: 6}}`:                              "spec.retries.attempts: is 6: expected at most 5",
		`{retries: {on: [reset, reset]}}`:                       "spec.retries.on[1]: repeats [0]",
		`{retries: {on: [timeout]}}`:                            "spec.retries.on[0]: has no effect: expected timeouts.attempt",
		`{retries: {on: [timeout]}, timeouts: {attempt: 1s}}`:   "",
		`{retries: {statuses: [302]}}`:                          "spec.retries.statuses[0]: is 302: expected a status, 400 to 599",
		`{retries: {backoff: 11s}}`:                             "spec.retries.backoff",
		`{hedging: {}}`:                                         "spec.hedging.delay: is missing",
		`{hedging: {delay: 50ms, attempts: 3}}`:                 "",
		`{hedging: {delay: 50ms, attempts: 4}}`:                 "spec.hedging.attempts: is 4: expected at most 3",
		`{hedging: {delay: 30s}}`:                               "spec.hedging.delay: is 30s and has no effect: expected less than timeouts.request, 30s",
		`{hedging: {delay: 30s}, timeouts: {request: 31s}}`:     "",
		`{mirrors: [{upstream: a}, {upstream: b, ratio: 0.1}]}`: "",
		`{mirrors: [{upstream: a}, {upstream: a}]}`:             `spec.mirrors[1].upstream: "a" repeats mirrors[0]`,
		`{mirrors: [{}]}`:                                       "spec.mirrors[0].upstream: is missing",
		`{mirrors: [{upstream: a, ratio: 1.1}]}`:                "spec.mirrors[0].ratio: is 1.1: expected 0 to 1",
		`{criticality: critical}`:                               "",
		`{timeouts: {attempt: 31s}}`:                            "spec.timeouts.attempt: is 31s, longer than all attempts together: expected at most request, 30s",
		`{timeouts: {request: 5s, attempt: 5s, idle: 100ms}}`:   "",
		`{timeouts: {idle: 1ms}}`:                               "spec.timeouts.idle",
		`{timeouts: {deadlineHeader: X-Timeout-Ms}}`:            "",
		`{timeouts: {deadlineHeader: "X Timeout"}}`:             "expected the name of a header",
		`{timeouts: {deadlineHeader: X_Timeout}}`:               "letters, digits and '-' only",
		`{timeouts: {deadlineHeader: Keep-Alive}}`:              "belongs to a connection",
		`{timeouts: {deadlineHeader: content-length}}`:          "belongs to a connection",
		`{timeouts: {deadlineHeader: X-Request-Id}}`:            "has a meaning of its own",
		`{timeouts: {deadlineHeader: X-Portcullis-Subject}}`:    "has a meaning of its own",
		`{timeouts: {deadlineHeader: grpc-timeout}}`:            "has a meaning of its own",
		`{timeouts: {deadlineHeader: Host}}`:                    "has a meaning of its own",
	} {
		says(t, spec, resilience(t, "Route", spec), want)
	}
}

// Unset values of enumerations and odd numbers come only from messages.
func TestResilienceOfMessages(t *testing.T) {
	r := report{}
	r.routeResilience(&configv1.Route{Retries: &configv1.Retries{On: []configv1.RetryOn{0}}})
	nan := 0.0
	nan /= nan
	r.upstreamResilience(&configv1.Upstream{PanicThreshold: &nan})
	said := errText(r.problems.sorted())
	for _, want := range []string{`spec.retries.on[0]: is empty: expected "reset", "unavailable"`, "spec.panicThreshold: is NaN"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q; want %q", said, want)
		}
	}
}

func TestMirrorsAreReferences(t *testing.T) {
	route := decode(t, "apiVersion: portcullis.dev/v1\nkind: Route\nmetadata: {name: x}\nspec: {backends: [{upstream: a}], mirrors: [{upstream: b}]}\n")[0]
	var refs []ref
	eachRef(route, func(f ref) { refs = append(refs, f) })
	if want := (ref{"spec.mirrors[#].upstream", [2]int{0}, KindUpstream, "b"}); len(refs) != 2 || refs[1] != want || refs[1].path() != "spec.mirrors[0].upstream" {
		t.Errorf("%v: expected %v among them", refs, want)
	}
}
