package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// Scenario is what is offered to a cluster and what must come of it. Durations are
// as Go writes them ("1.5s").
type Scenario struct {
	// Name is the file's, without its ending.
	Name        string `yaml:"-" json:"name"`
	Description string `yaml:"description" json:"description"`
	// Nodes of a cluster that is started for it; default 3.
	Nodes int `yaml:"nodes" json:"nodes"`
	// Upstream is the server behind the cluster.
	Upstream Upstream `yaml:"upstream" json:"upstream"`
	// Config are the documents that are applied first. ${upstream} in them is the
	// upstream's URL.
	Config string `yaml:"config" json:"-"`
	// Warm is the time at the start that no budget looks at.
	Warm time.Duration `yaml:"warm" json:"warm"`
	// Stages follow one another.
	Stages []Stage `yaml:"stages" json:"stages"`
	// Timeout of one request; default 10s.
	Timeout time.Duration `yaml:"timeout" json:"timeout"`
	// Connections to each node at most; default 128. What is due when all are in use
	// waits for one, which counts as its latency.
	Connections int `yaml:"connections" json:"connections"`
	// Requests are sent in turn, each as often as its weight says.
	Requests []Request `yaml:"requests" json:"-"`
	Disturb  *Disturb  `yaml:"disturb" json:"disturb,omitempty"`
	// Limit is the one bucket that all requests with an expected 429 are judged by.
	Limit   *Limit  `yaml:"limit" json:"limit,omitempty"`
	Budgets Budgets `yaml:"budgets" json:"-"`
}

// Upstream answers every request alike.
type Upstream struct {
	Delay time.Duration `yaml:"delay" json:"delay"`
	// Bytes of the answer's body; default 100.
	Bytes int `yaml:"bytes" json:"bytes"`
}

// Stage offers requests at a rate, or at one that grows evenly from rate to to.
type Stage struct {
	For time.Duration `yaml:"for" json:"for"`
	// Requests a second.
	Rate float64  `yaml:"rate" json:"rate"`
	To   *float64 `yaml:"to" json:"to,omitempty"`
}

// Request is one kind of request.
type Request struct {
	// Weight is how often it is sent beside the others; default 1.
	Weight  int               `yaml:"weight"`
	Method  string            `yaml:"method"`
	Path    string            `yaml:"path"`
	Host    string            `yaml:"host"`
	Headers map[string]string `yaml:"headers"`
	Body    string            `yaml:"body"`
	Token   *Token            `yaml:"token"`
	// Expect are the statuses that are no error; default 200.
	Expect []int `yaml:"expect"`
}

// Token is a bearer token of the built-in issuer.
type Token struct {
	// Count of different tokens, sent in turn; default 1.
	Count     int      `yaml:"count"`
	Scopes    []string `yaml:"scopes"`
	Audiences []string `yaml:"audiences"`
}

// Disturb is what happens to the cluster meanwhile.
type Disturb struct {
	// After is when it starts: the time between warm and this is the undisturbed one
	// that budgets compare with.
	After  time.Duration `yaml:"after" json:"after"`
	Reload *Reload       `yaml:"reload" json:"reload,omitempty"`
	Revoke *Revoke       `yaml:"revoke" json:"revoke,omitempty"`
}

// Reload applies a configuration again and again.
type Reload struct {
	Every time.Duration `yaml:"every" json:"every"`
	// Routes are applied each time, of which Changed (default: all) differ from the
	// last time.
	Routes  int `yaml:"routes" json:"routes"`
	Changed int `yaml:"changed" json:"changed"`
}

// Revoke mints a token, sees it let in, revokes it and waits until a node, another
// one each time, denies it.
type Revoke struct {
	Every time.Duration `yaml:"every" json:"every"`
	Path  string        `yaml:"path" json:"path"`
	Token Token         `yaml:"token" json:"-"`
}

// Limit is a token bucket.
type Limit struct {
	// Rate a second, and how many it holds.
	Rate  float64 `yaml:"rate" json:"rate"`
	Burst float64 `yaml:"burst" json:"burst"`
}

// Budgets are what a run must reach; what is left out is not looked at. Latencies
// count from when a request should have been sent.
type Budgets struct {
	P50  *time.Duration `yaml:"p50"`
	P90  *time.Duration `yaml:"p90"`
	P99  *time.Duration `yaml:"p99"`
	P999 *time.Duration `yaml:"p999"`
	Max  *time.Duration `yaml:"max"`
	// Errors is the largest share of answers that were not expected.
	Errors *float64 `yaml:"errors"`
	// Answered is the smallest share of what was offered that was answered within
	// the second after it was due.
	Answered *float64 `yaml:"answered"`
	// Disturbed is the largest quotient of the p99 of the disturbed time and of that
	// before.
	Disturbed  *float64     `yaml:"disturbed"`
	Config     *Propagation `yaml:"configPropagation"`
	Revocation *Propagation `yaml:"revocationPropagation"`
	// LimitWorst is the largest quotient of admitted and allowed in any second, and
	// LimitUsed the smallest of all that was admitted and all that one bucket would
	// have.
	LimitWorst *float64 `yaml:"limitWorst"`
	LimitUsed  *float64 `yaml:"limitUsed"`
}

// Propagation bounds how long a change takes to every node.
type Propagation struct {
	P50 *time.Duration `yaml:"p50"`
	P99 *time.Duration `yaml:"p99"`
}

// readScenario reads NAME from the folder, or from a path that ends in .yaml.
func readScenario(folder, name string) (*Scenario, error) {
	path := name
	if !strings.HasSuffix(name, ".yaml") {
		path = filepath.Join(folder, name+".yaml")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		known, _ := filepath.Glob(filepath.Join(folder, "*.yaml"))
		for i := range known {
			known[i] = strings.TrimSuffix(filepath.Base(known[i]), ".yaml")
		}
		return nil, fmt.Errorf("no scenario %q: %w; known: %s", name, err, strings.Join(known, ", "))
	}
	s, err := decodeScenario(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	s.Name = strings.TrimSuffix(filepath.Base(path), ".yaml")
	return s, nil
}

// decodeScenario decodes strictly, fills in defaults and checks.
func decodeScenario(data []byte) (*Scenario, error) {
	s := &Scenario{}
	if err := yaml.Load(data, s, yaml.WithKnownFields()); err != nil {
		return nil, err
	}
	s.defaults()
	return s, s.check()
}

func (s *Scenario) defaults() {
	set(&s.Nodes, 3)
	set(&s.Upstream.Bytes, 100)
	set(&s.Timeout, 10*time.Second)
	set(&s.Connections, 128)
	for i := range s.Requests {
		r := &s.Requests[i]
		set(&r.Weight, 1)
		set(&r.Method, http.MethodGet)
		if len(r.Expect) == 0 {
			r.Expect = []int{http.StatusOK}
		}
		if r.Token != nil {
			set(&r.Token.Count, 1)
		}
	}
	if s.Disturb != nil && s.Disturb.Reload != nil {
		set(&s.Disturb.Reload.Changed, s.Disturb.Reload.Routes)
	}
}

func set[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// check says everything that is wrong.
func (s *Scenario) check() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(s.Stages) == 0 {
		fail("stages: expected one at least")
	}
	for i, stage := range s.Stages {
		if stage.For <= 0 || stage.Rate < 0 || stage.To != nil && *stage.To < 0 || stage.Rate == 0 && (stage.To == nil || *stage.To == 0) {
			fail("stages[%d]: expected a time above 0 and a rate above 0", i)
		}
	}
	if len(s.Requests) == 0 {
		fail("requests: expected one at least")
	}
	for i, r := range s.Requests {
		if !strings.HasPrefix(r.Path, "/") || strings.Contains(r.Path, "#") {
			fail("requests[%d].path: expected one that starts with / and has no fragment", i)
		}
		if r.Weight < 0 || r.Weight > 1000 {
			fail("requests[%d].weight: expected 1 to 1000", i)
		}
		if r.Token != nil && (r.Token.Count < 1 || r.Token.Count > 100_000) {
			fail("requests[%d].token.count: expected 1 to 100000", i)
		}
	}
	if s.Nodes < 1 || s.Nodes > 100 {
		fail("nodes: expected 1 to 100")
	}
	if s.Warm < 0 || s.Warm >= s.span() {
		fail("warm: expected less than the stages take together, %s", s.span())
	}
	errs = append(errs, s.checkDisturbance()...)
	if l := s.Limit; l != nil && (l.Rate <= 0 || l.Burst <= 0) {
		fail("limit: expected rate and burst above 0")
	}
	if s.Limit == nil && (s.Budgets.LimitWorst != nil || s.Budgets.LimitUsed != nil) {
		fail("budgets: limitWorst and limitUsed need limit")
	}
	return errors.Join(errs...)
}

func (s *Scenario) checkDisturbance() []error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	d := s.Disturb
	if d == nil {
		d = &Disturb{}
	} else if d.After < s.Warm || d.After >= s.span() {
		fail("disturb.after: expected a time between warm and the end, %s", s.span())
	}
	if r := d.Reload; r != nil && (r.Every <= 0 || r.Routes < 1 || r.Changed < 1 || r.Changed > r.Routes) {
		fail("disturb.reload: expected every and routes above 0, and changed at most routes")
	}
	if r := d.Revoke; r != nil && (r.Every <= 0 || !strings.HasPrefix(r.Path, "/")) {
		fail("disturb.revoke: expected every above 0 and a path that starts with /")
	}
	switch b := s.Budgets; {
	case b.Disturbed != nil && (s.Disturb == nil || d.After <= s.Warm):
		fail("budgets.disturbed: needs a disturbance that starts after warm")
	case b.Config != nil && d.Reload == nil:
		fail("budgets.configPropagation: needs disturb.reload")
	case b.Revocation != nil && d.Revoke == nil:
		fail("budgets.revocationPropagation: needs disturb.revoke")
	}
	return errs
}

// span is how long the stages take together.
func (s *Scenario) span() time.Duration {
	var sum time.Duration
	for _, stage := range s.Stages {
		sum += stage.For
	}
	return sum
}

// scale makes the scenario longer or shorter, and faster or slower.
func (s *Scenario) scale(times, rates float64) {
	longer := func(d time.Duration) time.Duration { return time.Duration(float64(d) * times) }
	s.Warm = longer(s.Warm)
	for i := range s.Stages {
		stage := &s.Stages[i]
		stage.For, stage.Rate = longer(stage.For), stage.Rate*rates
		if stage.To != nil {
			to := *stage.To * rates
			stage.To = &to
		}
	}
	if s.Disturb != nil {
		s.Disturb.After = longer(s.Disturb.After)
	}
}
