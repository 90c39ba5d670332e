// Package config owns what an operator declares: its kinds and keys, its YAML,
// the rules it must obey, and the proof that it obeys them. YAML is decoded
// strictly onto the messages of proto/config/v1; Check holds all semantic rules,
// and a Checked is the only way to a running configuration. The package does no
// I/O, keeps no clock, and knows neither the store that keeps resources nor the
// nodes that run them.
package config

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// APIVersion is the apiVersion of every document.
const APIVersion = "portcullis.dev/v1"

// DefaultWorkspace exists from the start; names that a workspace lacks are looked
// up in it.
const DefaultWorkspace = "default"

// Kinds as they stand in documents.
const (
	KindWorkspace   = "Workspace"
	KindGateway     = "Gateway"
	KindRoute       = "Route"
	KindUpstream    = "Upstream"
	KindPolicy      = "Policy"
	KindIssuer      = "Issuer"
	KindApplication = "Application"
	KindCredential  = "Credential"
	KindKeySet      = "KeySet"

	KindCertificate       = "Certificate"
	KindIssuedCertificate = "IssuedCertificate"
)

func specs() protoreflect.OneofDescriptor {
	return (*configv1.Resource)(nil).ProtoReflect().Descriptor().Oneofs().ByName("spec")
}

// Kinds returns every kind in the order in which they are declared.
func Kinds() []string {
	fields := specs().Fields()
	kinds := make([]string, fields.Len())
	for i := range kinds {
		kinds[i] = string(fields.Get(i).Message().Name())
	}
	return kinds
}

// specField returns the field of Resource that holds the kind's spec, or nil for
// a kind that does not exist.
func specField(kind string) protoreflect.FieldDescriptor {
	fields := specs().Fields()
	for i := range fields.Len() {
		if string(fields.Get(i).Message().Name()) == kind {
			return fields.Get(i)
		}
	}
	return nil
}

// kindOf names the resource's kind; "" when it has no spec.
func kindOf(r *configv1.Resource) string {
	switch r.GetSpec().(type) {
	case *configv1.Resource_Workspace:
		return KindWorkspace
	case *configv1.Resource_Gateway:
		return KindGateway
	case *configv1.Resource_Route:
		return KindRoute
	case *configv1.Resource_Upstream:
		return KindUpstream
	case *configv1.Resource_Policy:
		return KindPolicy
	case *configv1.Resource_Issuer:
		return KindIssuer
	case *configv1.Resource_Application:
		return KindApplication
	case *configv1.Resource_Credential:
		return KindCredential
	case *configv1.Resource_KeySet:
		return KindKeySet
	case *configv1.Resource_Certificate:
		return KindCertificate
	case *configv1.Resource_IssuedCertificate:
		return KindIssuedCertificate
	}
	return ""
}

// OperatorMayWrite reports whether operators write resources of the kind. KeySets
// and IssuedCertificates are written by the control plane alone: an operator who
// could write one could make the cluster trust a key of his own.
func OperatorMayWrite(kind string) bool {
	return kind != KindKeySet && kind != KindIssuedCertificate && rank(kind) < rank("")
}

// normalized reports whether the resource says what it leaves to default.
func normalized(r *configv1.Resource) bool {
	return r.GetMetadata().GetWorkspace() != "" || kindOf(r) == KindWorkspace
}

// normalize returns a resource of its own that names its workspace.
func normalize(r *configv1.Resource) *configv1.Resource {
	r = proto.Clone(r).(*configv1.Resource)
	if !normalized(r) {
		if r.Metadata == nil {
			r.Metadata = &configv1.Metadata{}
		}
		r.Metadata.Workspace = DefaultWorkspace
	}
	return r
}

// quoteList spells a list for people: "a", "b" or "c".
func quoteList(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = `"` + n + `"`
	}
	if len(quoted) < 2 {
		return strings.Join(quoted, "")
	}
	last := len(quoted) - 1
	return strings.Join(quoted[:last], ", ") + " or " + quoted[last]
}
