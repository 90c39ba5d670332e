package expr

import (
	"errors"
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// Program is a compiled expression. Immutable and safe for concurrent use.
type Program struct {
	src      string
	want     Type
	cel      cel.Program
	variable string
	hints    []string
}

// Source returns the expression as it was written.
func (p *Program) Source() string { return p.src }

// Hints advises on the expression: which reads are errors when a key is missing.
func (p *Program) Hints() []string { return p.hints }

// Variable returns the name that the expression consists of, such as
// "auth.client", and false when it is more than a name. Who evaluates often can
// then read the value without CEL.
func (p *Program) Variable() (string, bool) { return p.variable, p.variable != "" }

// Bool evaluates a program compiled for Bool. Any error, a missing key or a value
// of another type among them, means that nothing may be allowed.
func (p *Program) Bool(a Activation) (bool, error) {
	value, err := p.eval(a)
	if err != nil {
		return false, err
	}
	b, ok := value.(types.Bool)
	if !ok {
		return false, fmt.Errorf("expression %q: is %s, expected bool", p.src, value.Type().TypeName())
	}
	return bool(b), nil
}

// String evaluates a program compiled for String.
func (p *Program) String(a Activation) (string, error) {
	value, err := p.eval(a)
	if err != nil {
		return "", err
	}
	s, ok := value.(types.String)
	if !ok {
		return "", fmt.Errorf("expression %q: is %s, expected string", p.src, value.Type().TypeName())
	}
	return string(s), nil
}

func (p *Program) eval(a Activation) (ref.Val, error) {
	value, _, err := p.cel.Eval(a)
	if err != nil {
		return nil, fmt.Errorf("expression %q: %w", p.src, err)
	}
	if types.IsUnknownOrError(value) {
		return nil, fmt.Errorf("expression %q: %w", p.src, errUnknown)
	}
	return value, nil
}

var errUnknown = errors.New("has no value")

// variable returns the name when the expression is nothing but a name.
func variable(a *ast.AST) string {
	info, ok := a.ReferenceMap()[a.Expr().ID()]
	if !ok || info.Value != nil {
		return ""
	}
	switch a.Expr().Kind() {
	case ast.IdentKind, ast.SelectKind:
		return info.Name
	}
	return ""
}

// inspect refuses reads that can never succeed and collects hints about reads
// that fail on a missing key.
func inspect(a *ast.AST) ([]string, error) {
	var hints []string
	var wrong *Error
	tested, read := map[string]bool{}, map[string]string{}
	var order []string
	ast.PreOrderVisit(a.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		m, key, test := lookup(a, e)
		if m == "" {
			return
		}
		if m == RequestHeaders && key != strings.ToLower(key) && wrong == nil {
			at := a.SourceInfo().GetStartLocation(e.ID())
			wrong = failf(at.Line(), at.Column()+1, "header %q never matches: names of headers are lower-case here, expected %q",
				key, strings.ToLower(key))
		}
		id := m + "\x00" + key
		if test {
			tested[id] = true
		} else if read[id] == "" {
			read[id] = presence(m, key)
			order = append(order, id)
		}
	}))
	if wrong != nil {
		return nil, wrong
	}
	for _, id := range order {
		if !tested[id] {
			m, key, _ := strings.Cut(id, "\x00")
			hints = append(hints, fmt.Sprintf("%s[%q] is an error when it is missing: test it first with %s", m, key, read[id]))
		}
	}
	return hints, nil
}

// presence spells the test for a key. has() takes identifiers only.
func presence(m, key string) string {
	for i, c := range key {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return fmt.Sprintf("'%s' in %s", strings.ReplaceAll(key, "'", `\'`), m)
		}
	}
	return fmt.Sprintf("has(%s.%s)", m, key)
}

// lookup reports whether e reads or tests a constant key of one of the maps.
func lookup(a *ast.AST, e ast.Expr) (m, key string, test bool) {
	switch e.Kind() {
	case ast.SelectKind:
		s := e.AsSelect()
		return mapName(a, s.Operand()), s.FieldName(), s.IsTestOnly()
	case ast.CallKind:
		c := e.AsCall()
		args := c.Args()
		switch c.FunctionName() {
		case "_[_]":
			if k, ok := literal(args[1]); ok {
				return mapName(a, args[0]), k, false
			}
		case "@in":
			if k, ok := literal(args[0]); ok {
				return mapName(a, args[1]), k, true
			}
		}
	}
	return "", "", false
}

func literal(e ast.Expr) (string, bool) {
	if e.Kind() != ast.LiteralKind {
		return "", false
	}
	s, ok := e.AsLiteral().(types.String)
	return string(s), ok
}

func mapName(a *ast.AST, e ast.Expr) string {
	info, ok := a.ReferenceMap()[e.ID()]
	if !ok {
		return ""
	}
	switch info.Name {
	case RequestHeaders, RequestQuery, RequestParams, RequestTLS, AuthClaims:
		return info.Name
	}
	return ""
}
