package config

import (
	"cmp"
	"fmt"
	"strings"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Key names a resource. A Workspace has no workspace of its own.
type Key struct{ Kind, Workspace, Name string }

// KeyOf returns the resource's key; a workspace left out is the default one.
func KeyOf(r *configv1.Resource) Key {
	k := Key{kindOf(r), r.GetMetadata().GetWorkspace(), r.GetMetadata().GetName()}
	if k.Workspace == "" && k.Kind != KindWorkspace {
		k.Workspace = DefaultWorkspace
	}
	return k
}

// KeyOfProto reads a message; a workspace left out is the default one.
func KeyOfProto(k *controlv1.ResourceKey) Key {
	key := Key{k.GetKind(), k.GetWorkspace(), k.GetName()}
	if key.Workspace == "" && key.Kind != KindWorkspace {
		key.Workspace = DefaultWorkspace
	}
	return key
}

// Proto returns the message.
func (k Key) Proto() *controlv1.ResourceKey {
	return &controlv1.ResourceKey{Kind: k.Kind, Workspace: k.Workspace, Name: k.Name}
}

// String returns "Route shop/orders", for a Workspace "Workspace shop".
func (k Key) String() string {
	if k.Workspace == "" {
		return k.Kind + " " + k.Name
	}
	return k.Kind + " " + k.Workspace + "/" + k.Name
}

// ParseKey reads what String returns; "Route orders" is in the default workspace.
func ParseKey(s string) (Key, error) {
	kind, rest, ok := strings.Cut(s, " ")
	if !ok || rest == "" {
		return Key{}, fmt.Errorf("key %q: expected a kind and a name, such as \"Route shop/orders\"", s)
	}
	if specField(kind) == nil {
		return Key{}, fmt.Errorf("key %q: unknown kind %q%s: expected %s", s, kind, didYouMean(kind, Kinds()), quoteList(Kinds()))
	}
	workspace, name, ok := strings.Cut(rest, "/")
	switch {
	case kind == KindWorkspace && ok:
		return Key{}, fmt.Errorf("key %q: a Workspace has no workspace", s)
	case kind == KindWorkspace:
		workspace, name = "", rest
	case !ok:
		workspace, name = DefaultWorkspace, rest
	}
	key := Key{kind, workspace, name}
	if badName(name) != "" || kind != KindWorkspace && badName(workspace) != "" {
		return Key{}, fmt.Errorf("key %q: expected names of lower-case letters, digits, '-' and '.'", s)
	}
	return key, nil
}

// Compare orders keys by kind as declared, workspace and name.
func (k Key) Compare(o Key) int {
	if k.Kind != o.Kind {
		if c := cmp.Compare(rank(k.Kind), rank(o.Kind)); c != 0 {
			return c
		}
		return strings.Compare(k.Kind, o.Kind)
	}
	if c := strings.Compare(k.Workspace, o.Workspace); c != 0 {
		return c
	}
	return strings.Compare(k.Name, o.Name)
}

// rank is the order of declaration, spelled out because keys are compared on
// every step through the tree.
func rank(kind string) int {
	switch kind {
	case KindWorkspace:
		return 0
	case KindGateway:
		return 1
	case KindRoute:
		return 2
	case KindUpstream:
		return 3
	case KindPolicy:
		return 4
	case KindIssuer:
		return 5
	case KindApplication:
		return 6
	case KindCredential:
		return 7
	case KindKeySet:
		return 8
	case KindCertificate:
		return 9
	case KindIssuedCertificate:
		return 10
	}
	return 11
}
