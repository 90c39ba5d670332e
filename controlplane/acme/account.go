package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/mholt/acmez/v3/acme"

	"portcullis.dev/portcullis/controlplane/store"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// enroll returns the account that orders. Its key is all that is kept of it: to
// register a key that is registered already returns its account (RFC 8555, 7.3),
// so that neither a lost answer nor an authority that has forgotten needs care.
func (o *order) enroll(ctx context.Context, spec *configv1.ACME) (acme.Account, error) {
	key, err := o.accountKey(ctx, accountName(o.source.Key.Workspace, spec))
	if err != nil {
		return acme.Account{}, err
	}
	account := acme.Account{PrivateKey: key, TermsOfServiceAgreed: spec.TermsAgreed}
	if spec.Email != "" {
		account.Contact = []string{"mailto:" + spec.Email}
	}
	account, err = o.client.NewAccount(ctx, account)
	if err != nil {
		return account, err
	}
	if account.Status != acme.StatusValid {
		return account, fmt.Errorf("the authority says that it is %q", account.Status)
	}
	return account, nil
}

// accountName names the key of a workspace's account. Workspaces share none: what
// one has proved to an authority must not serve another.
func accountName(workspace string, spec *configv1.ACME) string {
	sum := sha256.Sum256([]byte(directoryOf(spec) + "\x00" + spec.Email + "\x00" + spec.Ca))
	return workspace + "/" + hex.EncodeToString(sum[:16])
}

// accountKey loads the key, or makes it. Of several replicas one makes it and all
// get it.
func (o *order) accountKey(ctx context.Context, name string) (*ecdsa.PrivateKey, error) {
	for {
		item, err := o.cfg.Accounts.Get(ctx, name)
		if err == nil {
			parsed, err := x509.ParsePKCS8PrivateKey(item.Value)
			if err != nil {
				return nil, fmt.Errorf("reading its key: %w", err)
			}
			key, ok := parsed.(*ecdsa.PrivateKey)
			if !ok {
				return nil, errors.New("reading its key: expected ECDSA P-256")
			}
			return key, nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("loading its key: %w", err)
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		if _, err := o.cfg.Accounts.Put(ctx, name, der, store.Write{}); err != nil && !errors.Is(err, store.ErrExists) {
			return nil, fmt.Errorf("storing its key: %w", err)
		}
	}
}
