package acme

import (
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Complete returns the change together with the deletion of each IssuedCertificate
// whose Certificate it deletes or gives another origin: one that stayed would be
// served on, or stand for one that is made anew under its name. What was issued for
// other host names stays until the order for the new ones is done. Neither argument
// is modified.
func Complete(change *adminv1.Change, current config.Checked) *adminv1.Change {
	full := &adminv1.Change{Upserts: change.GetUpserts(), Deletes: change.GetDeletes()}
	drop := func(certificate config.Key) {
		key := IssuedKey(certificate)
		if _, ok := current.Get(key); ok {
			// Full capacity so that the caller's slice is never written to.
			full.Deletes = append(full.Deletes[:len(full.Deletes):len(full.Deletes)], key.Proto())
		}
	}
	for _, resource := range change.GetUpserts() {
		if spec, ok := resource.Spec.(*configv1.Resource_Certificate); ok && spec.Certificate.GetAcme() == nil {
			drop(config.KeyOf(resource))
		}
	}
	for _, deleted := range change.GetDeletes() {
		if key := config.KeyOfProto(deleted); key.Kind == config.KindCertificate {
			drop(key)
		}
	}
	return full
}

// IssuedKey names the IssuedCertificate of a Certificate.
func IssuedKey(certificate config.Key) config.Key {
	return config.Key{Kind: config.KindIssuedCertificate, Workspace: certificate.Workspace, Name: certificate.Name}
}
