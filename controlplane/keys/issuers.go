package keys

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Vault keeps private keys, sealed. Load returns nil and no error when there is
// none; Create returns false when another replica was first.
type Vault interface {
	Load(ctx context.Context, name string) ([]byte, error)
	Create(ctx context.Context, name string, key []byte) (bool, error)
}

// Issuers turns what an operator says of issuers into key sets, and signs for
// the built-in ones. Safe for concurrent use.
type Issuers struct {
	Client *Client
	Vault  Vault
}

// Complete returns the change together with the key sets that it needs: those of
// inline JWK sets and built-in issuers are written with their Issuer in one
// revision; one that is fetched anew is taken out until the fetch is done. With
// dry set nothing is stored. Errors of the operator's making are
// config.Problems.
func (i *Issuers) Complete(ctx context.Context, change *adminv1.Change, current config.Checked, dry bool) (*adminv1.Change, error) {
	full := &adminv1.Change{Upserts: change.GetUpserts(), Deletes: change.GetDeletes()}
	var problems config.Problems
	for _, resource := range change.GetUpserts() {
		spec, ok := resource.Spec.(*configv1.Resource_Issuer)
		if !ok {
			continue
		}
		key := config.KeyOf(resource)
		set, err := i.keysOf(ctx, key, spec.Issuer, dry)
		if err != nil {
			problem := &config.Problem{}
			if !errors.As(err, &problem) {
				return nil, err
			}
			problems = append(problems, problem)
			continue
		}
		if set != nil {
			full.Upserts = append(full.Upserts, &configv1.Resource{
				Metadata: &configv1.Metadata{Workspace: key.Workspace, Name: key.Name},
				Spec:     &configv1.Resource_KeySet{KeySet: set},
			})
			continue
		}
		if before, ok := current.Get(key); ok && before.GetIssuer().GetJwksUri() != spec.Issuer.JwksUri {
			full.Deletes = appendKeySet(full.Deletes, key, current)
		}
	}
	for _, deleted := range change.GetDeletes() {
		if key := config.KeyOfProto(deleted); key.Kind == "Issuer" {
			full.Deletes = appendKeySet(full.Deletes, key, current)
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return full, nil
}

// keysOf returns the key set that goes with the issuer's declaration, or nil
// when it is fetched.
func (i *Issuers) keysOf(ctx context.Context, key config.Key, issuer *configv1.Issuer, dry bool) (*configv1.KeySet, error) {
	switch {
	case issuer.BuiltIn:
		signer, err := i.signer(ctx, key, dry)
		if err != nil {
			return nil, err
		}
		public, err := signer.Public()
		if err != nil {
			return nil, err
		}
		return lasting([]*configv1.Key{public}), nil
	case issuer.Jwks != "":
		vetted, err := Vet([]byte(issuer.Jwks), Accepted(issuer))
		if err != nil {
			return nil, &config.Problem{Key: key, Path: "spec.jwks", Reason: err.Error()}
		}
		return lasting(vetted), nil
	case issuer.JwksUri != "":
		if err := i.Client.CheckURL(issuer.JwksUri); err != nil {
			return nil, &config.Problem{Key: key, Path: "spec.jwksUri", Reason: err.Error()}
		}
	}
	return nil, nil
}

// lasting is a key set that nobody fetches: it never goes stale.
func lasting(keys []*configv1.Key) *configv1.KeySet { return &configv1.KeySet{Keys: keys} }

func appendKeySet(deletes []*controlv1.ResourceKey, issuer config.Key, current config.Checked) []*controlv1.ResourceKey {
	key := config.Key{Kind: "KeySet", Workspace: issuer.Workspace, Name: issuer.Name}
	if _, ok := current.Get(key); !ok {
		return deletes
	}
	// Full capacity so that the caller's slice is never written to.
	return append(deletes[:len(deletes):len(deletes)], key.Proto())
}

// signer loads the private key of a built-in issuer, or makes it.
func (i *Issuers) signer(ctx context.Context, key config.Key, dry bool) (*Signer, error) {
	name := key.Workspace + "/" + key.Name
	for {
		stored, err := i.Vault.Load(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("loading the key of issuer %s: %w", name, err)
		}
		if stored != nil {
			return ParseSigner(stored)
		}
		signer, err := NewSigner()
		if err != nil || dry {
			return signer, err
		}
		der, err := signer.Marshal()
		if err != nil {
			return nil, err
		}
		// When another replica was first, its key is the one.
		created, err := i.Vault.Create(ctx, name, der)
		if err != nil {
			return nil, fmt.Errorf("storing the key of issuer %s: %w", name, err)
		}
		if created {
			return signer, nil
		}
	}
}

// Mint signs a token for a built-in issuer. It fills in TokenID and the times.
func (i *Issuers) Mint(ctx context.Context, key config.Key, issuer *configv1.Issuer, c Claims, ttl time.Duration, now time.Time) (string, Claims, error) {
	signer, err := i.signer(ctx, key, false)
	if err != nil {
		return "", c, err
	}
	c.Issuer, c.TokenID = issuer.Issuer, rand.Text()
	c.IssuedAt, c.ExpiresAt = now, now.Add(ttl)
	token, err := signer.Sign(c)
	return token, c, err
}
