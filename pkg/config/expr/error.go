package expr

import (
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
)

// Error is why an expression was refused. Line and Column are within the
// expression and start at 1; 0 when the whole expression is meant.
type Error struct {
	Line, Column int
	Reason       string
}

// Error returns the reason with its place in the expression.
func (e *Error) Error() string {
	if e.Line == 0 {
		return "expression " + e.Reason
	}
	return fmt.Sprintf("expression at %d:%d: %s", e.Line, e.Column, e.Reason)
}

func failf(line, column int, format string, args ...any) *Error {
	return &Error{line, column, fmt.Sprintf(format, args...)}
}

func issueError(issues *cel.Issues) *Error {
	first := issues.Errors()[0]
	reason := strings.TrimSuffix(first.Message, " (in container '')")
	if name, ok := strings.CutPrefix(reason, "undeclared reference to '"); ok {
		name, _, _ = strings.Cut(name, "'")
		reason = fmt.Sprintf("unknown name %q: expected request.{method, path, host, scheme, headers, query, peer, params, tls}, "+
			"auth.{method, subject, client, issuer, scopes, roles, groups, claims}, route or now", name)
	}
	line, column := 0, 0
	if first.Location != nil && first.Location.Line() > 0 {
		line, column = first.Location.Line(), first.Location.Column()+1
	}
	return &Error{line, column, reason}
}
