package controlplane

import (
	"context"
	"time"

	"portcullis.dev/portcullis/controlplane/acme"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// ACME tunes how certificates are obtained. The zero value is for production.
type ACME struct {
	// AllowLoopback lets directories be on loopback, for development and tests.
	AllowLoopback bool
	// Backoff is the time after a first failed order; 0 means 5 min.
	Backoff time.Duration
	// Converge bounds the wait for the nodes to answer challenges; 0 means 1 min.
	Converge time.Duration
}

func (p *Plane) newACME() *acme.Keeper {
	return acme.New(acme.Config{
		Replica: p.cfg.Name, Accounts: p.cfg.Store.Items(roomACME), Locks: p.cfg.Store.Items(roomLocks),
		Sources: p.certificates, Find: p.certificate, Changed: p.certificatesChanged,
		Write: func(ctx context.Context, source acme.Source, issued *configv1.IssuedCertificate, reason string) (config.Version, bool, error) {
			return p.admin.WriteIssued(ctx, source.Key, source.Certificate.GetAcme(), issued, reason)
		},
		Await: p.cluster.AwaitConvergence, AllowLoopback: p.cfg.ACME.AllowLoopback,
		Backoff: p.cfg.ACME.Backoff, Converge: p.cfg.ACME.Converge, Log: p.cfg.Log,
	})
}

// certificates lists the Certificates as this replica sees them.
func (p *Plane) certificates() []acme.Source {
	checked, _ := p.mirror.Current()
	var sources []acme.Source
	for key := range checked.OfKind(config.KindCertificate) {
		if source, ok := certificateIn(checked, key); ok {
			sources = append(sources, source)
		}
	}
	return sources
}

// certificate returns one Certificate as of the store's newest commit.
func (p *Plane) certificate(ctx context.Context, key config.Key) (acme.Source, bool, error) {
	tip, err := p.cfg.Store.Tip(ctx)
	if err == nil {
		err = p.mirror.Await(ctx, tip)
	}
	if err != nil {
		return acme.Source{}, false, err
	}
	checked, _ := p.mirror.Current()
	source, ok := certificateIn(checked, key)
	return source, ok, nil
}

func certificateIn(checked config.Checked, key config.Key) (acme.Source, bool) {
	declared, ok := checked.Get(key)
	if !ok {
		return acme.Source{}, false
	}
	source := acme.Source{Key: key, Certificate: declared.GetCertificate()}
	if issued, ok := checked.Get(acme.IssuedKey(key)); ok {
		source.Issued = issued.GetIssuedCertificate()
	}
	return source, true
}
