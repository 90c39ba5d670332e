package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/config/expr"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// addAuthorize compiles rules about what an authenticated caller may do.
func (c *compiler) addAuthorize(d declared, a *configv1.Authorize) error {
	rules := make(rules, 0, len(a.GetRules()))
	for i, r := range a.GetRules() {
		compiled, err := c.ruleOf(d.Origin, "rules["+strconv.Itoa(i)+"]", r)
		if err != nil {
			return fmt.Errorf("authorize.rules[%d]: %w", i, err)
		}
		rules = append(rules, compiled)
	}
	if len(rules) == 0 {
		return fmt.Errorf("authorize.rules: none")
	}
	c.authorize = append(c.authorize, authorize{level: d.Level, origin: d.Origin, rules: rules})
	return nil
}

// authorize is the rules of one policy and whom they are about.
type authorize struct {
	level  config.Level
	origin string
	as     int // see compiler.judgedBy
	rules  rules
}

// Do implements Policy.
func (a *authorize) Do(e *exchange.Exchange) *Denial {
	if a.as == innermost {
		return a.rules.do(e)
	}
	told := e.Identity
	e.Identity = e.Outer[a.as]
	d := a.rules.do(e)
	e.Identity = told
	return d
}

// rules must all hold, as far as they apply.
type rules []*rule

// rule has its denials ready: what it refuses says the same each time.
type rule struct {
	when, require *expr.Program
	scopes, roles []string

	name         string
	origin       string
	noScope      *Denial
	noScopeToken *Denial // with the challenge that a token calls for
	noRole       *Denial
	unmet        *Denial
}

func (c *compiler) ruleOf(origin, place string, r *configv1.AuthorizeRule) (*rule, error) {
	out := &rule{scopes: r.GetScopes(), roles: r.GetRoles(), name: r.GetName(), origin: origin}
	if out.name == "" {
		out.name = place
	}
	if len(out.scopes)+len(out.roles) == 0 && r.GetRequire() == "" {
		return nil, fmt.Errorf("it asks for nothing")
	}
	var err error
	if out.when, err = c.condition(r.GetWhen()); err != nil {
		return nil, fmt.Errorf("when: %w", err)
	}
	if out.require, err = c.condition(r.GetRequire()); err != nil {
		return nil, fmt.Errorf("require: %w", err)
	}
	deny := func(reason Reason, format string, args ...any) *Denial {
		return &Denial{Reason: reason, Policy: origin, Rule: out.name,
			Detail: fmt.Sprintf("rule %q: ", out.name) + fmt.Sprintf(format, args...)}
	}
	scopes := strings.Join(out.scopes, " ")
	out.noScope = deny(ScopeMissing, "the credential needs the scopes %q", scopes)
	withChallenge := *out.noScope
	withChallenge.Challenges = []string{bearerChallenge("insufficient_scope", "", scopes)}
	out.noScopeToken = &withChallenge
	out.noRole = deny(RuleDenied, "the caller needs one of the roles %q", strings.Join(out.roles, " "))
	out.unmet = deny(RuleDenied, "its condition does not hold")
	return out, nil
}

func (c *compiler) condition(src string) (*expr.Program, error) {
	if src == "" {
		return nil, nil
	}
	if c.deps.Expr == nil {
		return nil, errNeeds("Expr")
	}
	return c.deps.Expr.Compile(src, expr.Bool)
}

func errNeeds(what string) error { return fmt.Errorf("compiled without Deps.%s", what) }

func (r rules) do(e *exchange.Exchange) *Denial {
	for _, rule := range r {
		if d := rule.do(e); d != nil {
			return d
		}
	}
	return nil
}

func (r *rule) do(e *exchange.Exchange) *Denial {
	if r.when != nil {
		applies, err := r.when.Bool((*activation)(e))
		if err != nil {
			return r.failed("when", err)
		}
		if !applies {
			return nil
		}
	}
	for _, scope := range r.scopes {
		if !slices.Contains(e.Identity.Scopes, scope) {
			if e.Identity.Method == methodJWT {
				return r.noScopeToken
			}
			return r.noScope
		}
	}
	if len(r.roles) > 0 && !slices.ContainsFunc(r.roles, func(role string) bool { return slices.Contains(e.Identity.Roles, role) }) {
		return r.noRole
	}
	if r.require != nil {
		holds, err := r.require.Bool((*activation)(e))
		if err != nil {
			return r.failed("require", err)
		}
		if !holds {
			return r.unmet
		}
	}
	return nil
}

// failed denies: a rule that cannot be evaluated holds for nobody.
func (r *rule) failed(which string, err error) *Denial {
	return &Denial{
		Reason: ExpressionError, Policy: r.origin, Rule: r.name,
		Detail: fmt.Sprintf("rule %q could not be evaluated", r.name),
		Note:   which + ": " + expressionNote(err),
	}
}

// expressionNote tells operators what failed, as far as it cannot quote a value
// of the request: CEL's errors may.
func expressionNote(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, "no such key: "); i >= 0 {
		return text[i:]
	}
	for _, err := range []error{errSeveral, errTooMany} {
		if strings.Contains(text, err.Error()) {
			return err.Error()
		}
	}
	if strings.Contains(text, "no such overload") {
		return "no such overload"
	}
	return "the expression failed"
}
