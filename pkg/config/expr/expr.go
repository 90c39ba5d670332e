// Package expr compiles and runs the CEL expressions of the configuration: the
// conditions of authorization rules and the keys of rate limits. It owns the
// names an expression may use, their types, and the bounds on what an expression
// may cost. It must not know where the values come from: whoever evaluates gives
// an Activation.
//
// The names are variables whose names have dots, so an Activation is asked for
// exactly what an expression uses ("request.method", never "request"):
//
//	request.method, .path, .host, .scheme, .peer      string
//	request.headers                                   map(string, string), keys lower-case
//	request.query, .params, .tls                      map(string, string)
//	auth.method, .subject, .client, .issuer           string, "" when there is none
//	auth.scopes, .roles, .groups                      list(string)
//	auth.claims                                       map(string, dyn)
//	route                                             string, the route's name
//	route.name, route.workspace                       string
//	now                                               timestamp
//
// Reading a key that a map lacks is an error; 'x' in request.headers and
// has(auth.claims.x) test for it.
package expr

import (
	"fmt"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"
)

// Bounds on one expression. Cost is in CEL's units, of which one is some
// nanoseconds: the largest admitted expression costs about a millisecond on the
// largest input that a node admits.
const (
	MaxSize       = 4 << 10
	MaxCost       = 1_000_000
	maxDepth      = 64
	maxNodes      = 2000
	maxRegexNodes = 1000
	maxMemo       = 4096
)

// Names that an Activation is asked for.
const (
	RequestMethod  = "request.method"
	RequestPath    = "request.path"
	RequestHost    = "request.host"
	RequestScheme  = "request.scheme"
	RequestPeer    = "request.peer"
	RequestHeaders = "request.headers"
	RequestQuery   = "request.query"
	RequestParams  = "request.params"
	RequestTLS     = "request.tls"
	AuthMethod     = "auth.method"
	AuthSubject    = "auth.subject"
	AuthClient     = "auth.client"
	AuthIssuer     = "auth.issuer"
	AuthScopes     = "auth.scopes"
	AuthRoles      = "auth.roles"
	AuthGroups     = "auth.groups"
	AuthClaims     = "auth.claims"
	Route          = "route"
	RouteName      = "route.name"
	RouteWorkspace = "route.workspace"
	Now            = "now"
)

// Type is the type of an expression's value.
type Type uint8

// Types that an expression may be wanted to have.
const (
	Bool Type = iota + 1
	String
)

// String returns CEL's name of the type.
func (t Type) String() string {
	switch t {
	case Bool:
		return "bool"
	case String:
		return "string"
	}
	return fmt.Sprintf("Type(%d)", uint8(t))
}

func (t Type) cel() *cel.Type {
	if t == Bool {
		return cel.BoolType
	}
	return cel.StringType
}

// Activation gives the values of an expression's names, see the package comment.
// A value is what the type names in Go (string, []string, map[string]string,
// map[string]any, time.Time) or a CEL value, such as MapOf makes. One evaluation
// calls it from one goroutine.
type Activation = interpreter.Activation

// Env compiles expressions. It remembers what it compiled, since thousands of
// routes share a few expressions. Safe for concurrent use.
type Env struct {
	cel *cel.Env

	mu   sync.Mutex
	memo map[memoKey]memoValue
}

type memoKey struct {
	src  string
	want Type
}

type memoValue struct {
	program *Program
	err     error
}

// New returns an Env. It costs some milliseconds: share it.
func New() *Env {
	env, err := cel.NewEnv(options()...)
	if err != nil {
		panic(fmt.Sprintf("expr: the fixed environment is wrong: %v", err))
	}
	return &Env{cel: env, memo: map[memoKey]memoValue{}}
}

func options() []cel.EnvOption {
	strings := cel.MapType(cel.StringType, cel.StringType)
	list := cel.ListType(cel.StringType)
	opts := []cel.EnvOption{
		cel.Variable(RequestHeaders, strings),
		cel.Variable(RequestQuery, strings),
		cel.Variable(RequestParams, strings),
		cel.Variable(RequestTLS, strings),
		cel.Variable(AuthScopes, list),
		cel.Variable(AuthRoles, list),
		cel.Variable(AuthGroups, list),
		cel.Variable(AuthClaims, cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable(Now, cel.TimestampType),
		cel.ParserExpressionSizeLimit(MaxSize),
		cel.ParserRecursionLimit(maxDepth),
		cel.ExpressionNodeLimit(maxNodes),
		cel.RegexProgramSizeLimit(maxRegexNodes),
		cel.ASTValidators(
			cel.ValidateRegexLiterals(),
			cel.ValidateDurationLiterals(),
			cel.ValidateTimestampLiterals(),
			cel.ValidateComprehensionNestingLimit(2),
		),
		cel.DefaultUTCTimeZone(true),
	}
	for _, name := range []string{
		RequestMethod, RequestPath, RequestHost, RequestScheme, RequestPeer,
		AuthMethod, AuthSubject, AuthClient, AuthIssuer, Route, RouteName, RouteWorkspace,
	} {
		opts = append(opts, cel.Variable(name, cel.StringType))
	}
	return opts
}

// Compile checks an expression and makes a program of it. The error is of type
// *Error and says what is wrong and where.
func (e *Env) Compile(src string, want Type) (*Program, error) {
	key := memoKey{src, want}
	e.mu.Lock()
	known, ok := e.memo[key]
	e.mu.Unlock()
	if ok {
		return known.program, known.err
	}
	program, err := e.compile(src, want)
	if len(src) > MaxSize {
		return nil, err // not worth remembering, and large
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.memo) >= maxMemo {
		clear(e.memo)
	}
	e.memo[key] = memoValue{program, err}
	return program, err
}

func (e *Env) compile(src string, want Type) (*Program, error) {
	if len(src) > MaxSize {
		return nil, failf(0, 0, "is %d bytes long: expected at most %d", len(src), MaxSize)
	}
	if strings.TrimSpace(src) == "" {
		return nil, failf(0, 0, "is empty: expected a CEL expression of type %v", want)
	}
	ast, issues := e.cel.Compile(src)
	if issues.Err() != nil {
		return nil, issueError(issues)
	}
	if got := ast.OutputType(); !got.IsExactType(want.cel()) && !got.IsExactType(types.DynType) {
		return nil, failf(0, 0, "is of type %v: expected %v", got, want)
	}
	hints, err := inspect(ast.NativeRep())
	if err != nil {
		return nil, err
	}
	estimate, err := e.cel.EstimateCost(ast, sizes{})
	if err != nil {
		return nil, failf(0, 0, "cost cannot be bounded: %v", err)
	}
	if estimate.Max > MaxCost {
		return nil, failf(0, 0, "may cost %s: expected at most %d; compare fewer lists with each other",
			costText(estimate.Max), MaxCost)
	}
	program, err := e.cel.Program(ast, cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, failf(0, 0, "%v", err)
	}
	return &Program{src: src, want: want, cel: program, variable: variable(ast.NativeRep()), hints: hints}, nil
}

func costText(cost uint64) string {
	if cost > 1<<62 {
		return "any amount"
	}
	return fmt.Sprint(cost)
}
