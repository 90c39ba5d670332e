package admin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/revocation"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// defaultSkew is the clock skew that nodes accept of an issuer that does not say.
const defaultSkew = 30 * time.Second

// Revoke implements adminv1.AdminServiceServer. An entry reaches every
// workspace, so it takes an operator who is bound to none.
func (s *Service) Revoke(ctx context.Context, req *adminv1.RevokeRequest) (*adminv1.RevokeResponse, error) {
	entry, target, err := s.entryOf(req, time.Now())
	operator, denied := s.authorise(ctx, ActionRevoke, target, everyWorkspace)
	if denied != nil {
		return nil, denied
	}
	if err != nil {
		return nil, err
	}
	if len(req.Reason) > maxReason {
		return nil, fmt.Errorf("%w: the reason is longer than %d bytes", ErrInvalid, maxReason)
	}
	version, err := s.Store.Revoke(ctx, []*controlv1.Revocation{entry},
		store.Meta{Author: operator.Name, Reason: req.Reason, Time: time.Now()})
	if err != nil {
		return nil, err
	}
	s.seen(ctx, version)
	return &adminv1.RevokeResponse{Version: version.Proto(), ExpiresAt: entry.ExpiresAt}, nil
}

// entryOf turns a request into a deny-lane entry that outlives every token it
// can hit.
func (s *Service) entryOf(req *adminv1.RevokeRequest, now time.Time) (*controlv1.Revocation, string, error) {
	type choice struct {
		kind  controlv1.RevocationKind
		value string
	}
	choices := slices.DeleteFunc([]choice{
		{controlv1.RevocationKind_REVOCATION_KIND_JTI, req.Jti},
		{controlv1.RevocationKind_REVOCATION_KIND_SESSION, req.Session},
		{controlv1.RevocationKind_REVOCATION_KIND_SUBJECT, req.Subject},
		{controlv1.RevocationKind_REVOCATION_KIND_CLIENT, req.Client},
	}, func(c choice) bool { return c.value == "" })
	if len(choices) > 1 || len(choices) == 0 && req.Issuer == "" {
		return nil, "revocation", fmt.Errorf("%w: name exactly one of subject, client, session, jti, or issuer (an issuer beside another narrows it)", ErrInvalid)
	}
	of, err := s.issuersOf(req.Issuer)
	if err != nil {
		return nil, "revocation", err
	}
	picked := choice{controlv1.RevocationKind_REVOCATION_KIND_ISSUER, of.iss}
	scope := ""
	if len(choices) == 1 {
		picked, scope = choices[0], of.iss
	}
	key := revocation.KeyOf(picked.kind, scope, picked.value)
	entry := &controlv1.Revocation{Kind: picked.kind, Key: key[:], ExpiresAt: timestamppb.New(now.Add(of.lifetime + 2*of.skew + expirySlack))}
	target := "revoke " + strings.ToLower(strings.TrimPrefix(picked.kind.String(), "REVOCATION_KIND_")) + " " + picked.value
	if picked.kind == controlv1.RevocationKind_REVOCATION_KIND_JTI {
		if req.Before != nil {
			return nil, target, fmt.Errorf("%w: before does not go with jti: one token has one time", ErrInvalid)
		}
		return entry, target, nil
	}
	// An issuer's clock may run ahead by as much as nodes accept: what it has
	// issued until now may say so much later.
	entry.RevokedBefore = timestamppb.New(now.Add(of.skew))
	if req.Before != nil {
		if !req.Before.IsValid() || req.Before.AsTime().After(now) {
			return nil, target, fmt.Errorf("%w: before is no time, or lies in the future: tokens not issued yet cannot be revoked", ErrInvalid)
		}
		entry.RevokedBefore = req.Before
	}
	return entry, target, nil
}

// issuers are what a revocation is about: tokens of one iss, or of any.
type issuers struct {
	// iss is empty for any.
	iss string
	// lifetime is the longest that one of their tokens may live.
	lifetime time.Duration
	// skew is the most that one of their clocks may run ahead; none for those that
	// sign with our own.
	skew time.Duration
}

// expirySlack keeps an entry beyond the last token that it can hit, for clocks
// that differ between replicas and nodes.
const expirySlack = 2 * time.Minute

// issuersOf resolves an Issuer's name, workspace/name or iss, and "" to all of
// them. Issuers of the same iss count together: an entry names the iss.
func (s *Service) issuersOf(name string) (issuers, error) {
	current, _ := s.Mirror.Current()
	of := issuers{}
	if name != "" {
		for key, resource := range current.OfKind(config.KindIssuer) {
			if name == resource.GetIssuer().Issuer || name == key.Workspace+"/"+key.Name ||
				key.Workspace == config.DefaultWorkspace && name == key.Name {
				of.iss = resource.GetIssuer().Issuer
			}
		}
		if of.iss == "" {
			return of, fmt.Errorf("%w: no issuer %q: give its name, workspace/name or iss", ErrInvalid, name)
		}
	} else {
		of.lifetime = defaultLifetime
	}
	for _, resource := range current.OfKind(config.KindIssuer) {
		issuer := resource.GetIssuer()
		if of.iss != "" && issuer.Issuer != of.iss {
			continue
		}
		lifetime, skew := defaultLifetime, defaultSkew
		if issuer.MaxLifetime != nil {
			lifetime = issuer.MaxLifetime.AsDuration()
		}
		if issuer.ClockSkew != nil {
			skew = issuer.ClockSkew.AsDuration()
		}
		if issuer.BuiltIn {
			skew = 0
		}
		of.lifetime, of.skew = max(of.lifetime, lifetime), max(of.skew, skew)
	}
	return of, nil
}
