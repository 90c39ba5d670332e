package policy

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/config/expr"
)

// activation shows an exchange to an expression. Each value is built when an
// expression asks for it, so that what no expression reads costs nothing; being
// the exchange itself, it costs nothing to make.
type activation exchange.Exchange

// ResolveName implements expr.Activation.
func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case expr.RequestMethod:
		return methodValue(a.Request.Method), true
	case expr.RequestPath:
		return types.String(a.Request.Path), true
	case expr.RequestHost:
		return types.String(a.Request.Host), true
	case expr.RequestScheme:
		return types.String(a.Request.Scheme), true
	case expr.RequestPeer:
		return a.Request.Peer.Unmap().String(), true
	case expr.RequestHeaders:
		if a.Request.Header.Len() > expr.MaxEntries {
			return types.WrapErr(errTooMany), true
		}
		return expr.MapOf(headerView{&a.Request.Header}), true
	case expr.RequestQuery:
		parameters, all := (*exchange.Exchange)(a).Parameters(expr.MaxEntries)
		if !all {
			return types.WrapErr(errTooMany), true
		}
		return expr.MapOf(queryView(parameters)), true
	case expr.RequestParams:
		return expr.MapOf(paramView(a.Params)), true
	case expr.RequestTLS:
		return tlsOf(a.Request.TLS), true
	case expr.AuthClaims:
		return claimAdapter{}.NativeToValue(a.Identity.Claims), true
	case expr.Route, expr.RouteName:
		return a.Route.Name, true
	case expr.RouteWorkspace:
		return a.Route.Workspace, true
	case expr.Now:
		return a.Received, true
	case expr.AuthScopes:
		return a.Identity.Scopes, true
	case expr.AuthRoles:
		return a.Identity.Roles, true
	case expr.AuthGroups:
		return a.Identity.Groups, true
	}
	text, ok := a.text(name)
	return types.String(text), ok
}

// methodValue is the value that CEL makes of a method. The usual ones are
// constants, which cost no allocation: most rules begin with the method.
func methodValue(method string) any {
	switch method {
	case "GET":
		return types.String("GET")
	case "HEAD":
		return types.String("HEAD")
	case "POST":
		return types.String("POST")
	case "PUT":
		return types.String("PUT")
	case "PATCH":
		return types.String("PATCH")
	case "DELETE":
		return types.String("DELETE")
	case "OPTIONS":
		return types.String("OPTIONS")
	}
	return types.String(method)
}

// text returns the names of the identity that are strings.
func (a *activation) text(name string) (string, bool) {
	switch name {
	case expr.AuthMethod:
		return a.Identity.Method, true
	case expr.AuthSubject:
		return a.Identity.Subject, true
	case expr.AuthClient:
		return a.Identity.Client, true
	case expr.AuthIssuer:
		return a.Identity.Issuer, true
	}
	return "", false
}

// Parent implements expr.Activation.
func (a *activation) Parent() expr.Activation { return nil }

// errSeveral fails an expression that reads one of several values: the upstream
// may act on another than the rule saw.
var errSeveral = errors.New("there are several values")

// errTooMany fails an expression that reads among more than it may cost to read.
var errTooMany = fmt.Errorf("there are more than %d header fields or query parameters", expr.MaxEntries)

type headerView struct{ header *exchange.Header }

func (v headerView) Lookup(key string) (string, bool, error) {
	value, found := v.header.Lookup(key)
	if found && v.header.Count(key) > 1 {
		return "", false, errSeveral
	}
	return value, found, nil
}

func (v headerView) Keys() []string {
	var keys []string
	seen := map[string]bool{}
	for _, f := range v.header.Fields() {
		if k := strings.ToLower(f.Name); !seen[k] {
			seen[k] = true
			keys = append(keys, k)
		}
	}
	return keys
}

type queryView []exchange.Field

func (v queryView) Lookup(key string) (value string, found bool, err error) {
	for i := range v {
		if v[i].Name != key {
			continue
		}
		if found {
			return "", false, errSeveral
		}
		value, found = v[i].Value, true
	}
	return value, found, nil
}

func (v queryView) Keys() []string {
	var keys []string
	seen := map[string]bool{}
	for i := range v {
		if name := v[i].Name; !seen[name] {
			seen[name] = true
			keys = append(keys, name)
		}
	}
	return keys
}

type paramView []exchange.Param

func (v paramView) Lookup(key string) (string, bool, error) {
	for i := range v {
		if v[i].Name == key {
			return v[i].Value, true, nil
		}
	}
	return "", false, nil
}

func (v paramView) Keys() []string {
	keys := make([]string, len(v))
	for i := range v {
		keys[i] = v[i].Name
	}
	return keys
}

// tlsOf shows what the handshake told. The client's names are there only when
// its certificate was verified.
func tlsOf(t *exchange.PeerTLS) map[string]string {
	out := map[string]string{}
	if t == nil {
		return out
	}
	out["version"] = strings.TrimPrefix(tls.VersionName(t.Version), "TLS ")
	out["server_name"] = t.ServerName
	out["alpn"] = t.ALPN
	if len(t.Verified) > 0 {
		leaf := t.Verified[0]
		sum := sha256.Sum256(leaf.Raw)
		out["client_subject"] = leaf.Subject.String()
		out["client_sha256"] = hex.EncodeToString(sum[:])
	}
	return out
}

// claimAdapter shows claims to an expression. It differs from CEL's own adapter
// in numbers that a float64 would change: they become integers, or an error when
// they are beyond CEL's integers, but never a neighbour.
type claimAdapter struct{}

// NativeToValue implements types.Adapter.
func (a claimAdapter) NativeToValue(v any) ref.Val {
	switch v := v.(type) {
	case map[string]any:
		return types.NewStringInterfaceMap(a, v)
	case []any:
		return types.NewDynamicList(a, v)
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return types.Int(n)
		}
		if f, err := v.Float64(); err == nil && strings.ContainsAny(string(v), ".eE") {
			return types.Double(f)
		}
		return types.NewErr("a number is out of range")
	}
	return types.DefaultTypeAdapter.NativeToValue(v)
}
