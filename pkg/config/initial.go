package config

import configv1 "portcullis.dev/portcullis/proto/config/v1"

// Initial returns what every cluster has from its first start: the workspace
// default and the built-in issuer local, whose iss claim is given.
func Initial(iss string) []*configv1.Resource {
	return []*configv1.Resource{
		{
			Metadata: &configv1.Metadata{Name: DefaultWorkspace},
			Spec:     &configv1.Resource_Workspace{Workspace: &configv1.Workspace{Description: "What is not in another workspace, and what all of them may refer to."}},
		},
		{
			Metadata: &configv1.Metadata{Workspace: DefaultWorkspace, Name: "local"},
			Spec:     &configv1.Resource_Issuer{Issuer: &configv1.Issuer{Issuer: iss, BuiltIn: true, Algorithms: []string{"ES256"}}},
		},
	}
}
