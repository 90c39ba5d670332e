package config

import (
	"crypto/sha256"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/config/expr"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func (r *report) application(a *configv1.Application) {
	r.text("spec.description", a.GetDescription(), 1024)
	r.words("spec.scopes", a.GetScopes(), maxWords, badScope)
	r.words("spec.roles", a.GetRoles(), maxWords, badWord)
	r.words("spec.groups", a.GetGroups(), maxWords, badWord)
}

func (r *report) credential(c *configv1.Credential) {
	if why := badName(c.GetApplication()); why != "" {
		r.fail("spec.application", "%s", why)
	}
	switch kind := c.GetKind().(type) {
	case *configv1.Credential_ApiKey:
		if n := len(kind.ApiKey.GetSha256()); n != sha256.Size {
			r.fail("spec.apiKey.sha256", "is %d bytes long: expected the %d of a SHA-256", n, sha256.Size)
		}
		r.text("spec.apiKey.hint", kind.ApiKey.GetHint(), 16)
	default:
		r.fail("spec", "is empty: expected \"apiKey\"")
	}
	r.timestamp("spec.expiresAt", c.GetExpiresAt())
	r.timestamp("spec.createdAt", c.GetCreatedAt())
	r.words("spec.scopes", c.GetScopes(), maxWords, badScope)
}

// CheckCredential checks a Credential, of which there may be a million and which
// are therefore no part of a Checked, against its Application. The error is
// Problems.
func CheckCredential(c Checked, res *configv1.Resource) error {
	r := report{key: KeyOf(res), env: expressions(c)}
	if r.key.Kind != KindCredential {
		r.fail("kind", "is %q: expected %q", r.key.Kind, KindCredential)
		return r.problems.sorted()
	}
	if !normalized(res) {
		res = normalize(res)
	}
	r.local(res, proto.Size(res))
	spec := res.GetCredential()
	app, ok := c.Get(Key{KindApplication, r.key.Workspace, spec.GetApplication()})
	if !ok {
		r.fail("spec.application", "Application %q does not exist in workspace %q: expected one that does", shorten(spec.GetApplication()), r.key.Workspace)
		return r.problems.sorted()
	}
	for i, scope := range spec.GetScopes() {
		if !slices.Contains(app.GetApplication().GetScopes(), scope) {
			r.fail("spec.scopes["+strconv.Itoa(i)+"]", "%q is not a scope of Application %q: expected one of them", shorten(scope), spec.GetApplication())
		}
	}
	return r.problems.sorted()
}

// expressions returns the compiler that the configurations of one lineage share.
func expressions(c Checked) *expr.Env {
	if c.env != nil {
		return c.env
	}
	return expr.New()
}
