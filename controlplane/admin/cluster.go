package admin

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/acme"
	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	defaultJoinTTL = time.Hour
	maxJoinTTL     = 24 * time.Hour
	whyTimeout     = 3 * time.Second
)

// Status implements adminv1.AdminServiceServer.
func (s *Service) Status(ctx context.Context, _ *adminv1.StatusRequest) (*adminv1.StatusResponse, error) {
	operator, err := s.authorise(ctx, ActionRead, "status")
	if err != nil {
		return nil, err
	}
	replicas, err := s.Cluster.Replicas(ctx)
	if err != nil {
		return nil, err
	}
	current, version := s.Mirror.Current()
	credentials, revocations := s.Mirror.Counts()
	resp := &adminv1.StatusResponse{
		Version: s.Release, Revision: version.Proto(), Nodes: shown(s.Cluster.Nodes(), operator), Replicas: replicas,
		Credentials: int64(credentials), Revocations: int64(revocations),
	}
	for key, resource := range current.OfKind(config.KindIssuer) {
		issuer := resource.GetIssuer()
		if !visible(operator, key) {
			continue
		}
		status := &adminv1.IssuerStatus{Workspace: key.Workspace, Name: key.Name, Issuer: issuer.Issuer}
		if set, ok := current.Get(config.Key{Kind: "KeySet", Workspace: key.Workspace, Name: key.Name}); ok {
			keys := set.GetKeySet()
			status.Keys, status.FetchedAt, status.StaleAt, status.Problem = int32(len(keys.Keys)), keys.FetchedAt, keys.StaleAt, keys.Problem
		} else if issuer.HmacSecret == "" {
			status.Problem = "keys not fetched yet"
		}
		resp.Issuers = append(resp.Issuers, status)
	}
	for key, resource := range current.OfKind(config.KindCertificate) {
		if spec := resource.GetCertificate().GetAcme(); spec != nil && visible(operator, key) {
			resp.Certificates = append(resp.Certificates, certificateStatus(key, spec, current))
		}
	}
	return resp, nil
}

// certificateStatus is how a certificate that is obtained by ACME fares.
func certificateStatus(key config.Key, spec *configv1.ACME, current config.Checked) *adminv1.CertificateStatus {
	status := &adminv1.CertificateStatus{Workspace: key.Workspace, Name: key.Name, Hostnames: spec.Hostnames}
	resource, ok := current.Get(acme.IssuedKey(key))
	if !ok {
		status.Problem = "not ordered yet"
		return status
	}
	issued := resource.GetIssuedCertificate()
	status.IssuedAt, status.RefreshAt, status.Problem = issued.IssuedAt, issued.RefreshAt, issued.Problem
	status.Failures, status.Ordering, status.Suggested = issued.Failures, len(issued.Challenges) > 0, issued.Suggested
	if at := acme.Expiry(issued.Certificate); !at.IsZero() {
		status.ExpiresAt = timestamppb.New(at)
	}
	return status
}

// shown leaves out of the nodes' problems those that concern other workspaces'
// resources, but never that there are some, and out of their condition the
// endpoints of other workspaces.
func shown(nodes []*controlv1.NodeStatus, operator *adminv1.Operator) []*controlv1.NodeStatus {
	if covers(operator, everyWorkspace) {
		return nodes
	}
	out := slices.Clone(nodes)
	for i, node := range out {
		problems := slices.Clone(node.Problems)
		for j, p := range problems {
			if key, err := config.ParseKey(p.Resource); err != nil || !visible(operator, key) {
				problems[j] = &controlv1.Problem{Reason: "a resource of another workspace was rejected"}
			}
		}
		out[i] = proto.CloneOf(node)
		out[i].Problems = problems
		if c := out[i].Condition; c != nil {
			// How many are out says something of others; which does more.
			c.Endpoints = slices.DeleteFunc(c.Endpoints, func(e *controlv1.EndpointCondition) bool { return !covers(operator, e.Workspace) })
			c.EndpointsOut = uint32(len(c.Endpoints))
		}
	}
	return out
}

// Why implements adminv1.AdminServiceServer.
func (s *Service) Why(ctx context.Context, req *adminv1.WhyRequest) (*adminv1.WhyResponse, error) {
	operator, err := s.authorise(ctx, ActionRead, "why "+req.RequestId)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, whyTimeout)
	defer cancel()
	record, found, err := s.Cluster.Why(ctx, req.RequestId)
	if err != nil {
		return nil, err
	}
	// What another workspace's operator may not see is answered like what is not
	// there. A request that matched no route belongs to no workspace.
	if !found || record.Workspace != "" && !covers(operator, record.Workspace) || record.Workspace == "" && !covers(operator, everyWorkspace) {
		return nil, fmt.Errorf("no node remembers a request %q: nodes keep their newest decisions only: %w", req.RequestId, store.ErrNotFound)
	}
	return &adminv1.WhyResponse{Record: record}, nil
}

// CreateJoinToken implements adminv1.AdminServiceServer.
func (s *Service) CreateJoinToken(ctx context.Context, req *adminv1.CreateJoinTokenRequest) (*adminv1.CreateJoinTokenResponse, error) {
	if _, err := s.authorise(ctx, ActionNodes, "join token", everyWorkspace); err != nil {
		return nil, err
	}
	ttl := defaultJoinTTL
	if req.Ttl != nil {
		ttl = req.Ttl.AsDuration()
	}
	if ttl < time.Second || ttl > maxJoinTTL {
		return nil, fmt.Errorf("%w: ttl %s is outside 1s to %s", ErrInvalid, ttl, maxJoinTTL)
	}
	token, err := s.JoinToken(ctx, ttl)
	if err != nil {
		return nil, err
	}
	return &adminv1.CreateJoinTokenResponse{Token: token, ExpiresAt: timestamppb.New(time.Now().Add(ttl))}, nil
}

// RemoveNode implements adminv1.AdminServiceServer.
func (s *Service) RemoveNode(ctx context.Context, req *adminv1.RemoveNodeRequest) (*adminv1.RemoveNodeResponse, error) {
	if _, err := s.authorise(ctx, ActionNodes, "remove node "+req.Name, everyWorkspace); err != nil {
		return nil, err
	}
	if err := s.RemoveNodeByName(ctx, req.Name); err != nil {
		return nil, fmt.Errorf("node %s: %w", req.Name, err)
	}
	return &adminv1.RemoveNodeResponse{}, nil
}

var operatorName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.@_-]{0,61}[a-z0-9])?$`)

// CreateOperator implements adminv1.AdminServiceServer.
func (s *Service) CreateOperator(ctx context.Context, req *adminv1.CreateOperatorRequest) (*adminv1.CreateOperatorResponse, error) {
	if _, err := s.authorise(ctx, ActionManageOperators, "create operator "+req.GetOperator().GetName(), everyWorkspace); err != nil {
		return nil, err
	}
	credential, err := AddOperator(ctx, s.Store, req.Operator)
	if err != nil {
		return nil, err
	}
	return &adminv1.CreateOperatorResponse{Credential: credential}, nil
}

// AddOperator writes a new operator and returns its credential, which is stored
// as SHA-256 only. The control plane itself uses it once, for the first admin.
func AddOperator(ctx context.Context, st store.Store, operator *adminv1.Operator) (string, error) {
	if !operatorName.MatchString(operator.GetName()) {
		return "", fmt.Errorf("%w: operator name %q, expected lower-case letters, digits and . @ _ -, at most 63", ErrInvalid, operator.GetName())
	}
	if permissions[operator.Role] == nil {
		return "", fmt.Errorf("%w: an operator needs a role: viewer, editor, security or admin", ErrInvalid)
	}
	if slices.Contains(operator.Workspaces, everyWorkspace) || slices.Contains(operator.Workspaces, "") {
		return "", fmt.Errorf("%w: workspaces are names; leave them out for every workspace", ErrInvalid)
	}
	stored := proto.CloneOf(operator)
	stored.CreatedAt = timestamppb.Now()
	value, err := proto.Marshal(stored)
	if err != nil {
		return "", err
	}
	// The operator first: a credential that leads to nobody lets nobody in.
	if _, err := st.Items(operators).Put(ctx, operator.Name, value, store.Write{}); err != nil {
		return "", fmt.Errorf("operator %s: %w", operator.Name, err)
	}
	credential, digest := identity.NewOperatorCredential()
	if _, err := st.Items(operatorHashes).Put(ctx, hex.EncodeToString(digest[:]), []byte(operator.Name), store.Write{}); err != nil {
		_, _ = st.Items(operators).Delete(ctx, operator.Name)
		return "", fmt.Errorf("operator %s: %w", operator.Name, err)
	}
	return credential, nil
}

// AnyOperator says whether anybody can use the admin API.
func AnyOperator(ctx context.Context, st store.Store) (bool, error) {
	credentials, err := st.Items(operatorHashes).List(ctx)
	return len(credentials) > 0, err
}

// RemoveUnable removes every operator. It is for a store in which none has a
// credential, as a crash in the middle of AddOperator leaves it.
func RemoveUnable(ctx context.Context, st store.Store) error {
	unable, err := st.Items(operators).List(ctx)
	for _, item := range unable {
		if _, err := st.Items(operators).Delete(ctx, item.Name); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	return err
}

// ListOperators implements adminv1.AdminServiceServer.
func (s *Service) ListOperators(ctx context.Context, _ *adminv1.ListOperatorsRequest) (*adminv1.ListOperatorsResponse, error) {
	if _, err := s.authorise(ctx, ActionManageOperators, "list operators", everyWorkspace); err != nil {
		return nil, err
	}
	items, err := s.Store.Items(operators).List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &adminv1.ListOperatorsResponse{}
	for _, item := range items {
		operator := &adminv1.Operator{}
		if err := proto.Unmarshal(item.Value, operator); err != nil {
			return nil, fmt.Errorf("reading operator %s: %w", item.Name, err)
		}
		resp.Operators = append(resp.Operators, operator)
	}
	slices.SortFunc(resp.Operators, func(a, b *adminv1.Operator) int { return strings.Compare(a.Name, b.Name) })
	return resp, nil
}

// DeleteOperator implements adminv1.AdminServiceServer. Its credential is dead
// with the operator, since every call looks the operator up.
func (s *Service) DeleteOperator(ctx context.Context, req *adminv1.DeleteOperatorRequest) (*adminv1.DeleteOperatorResponse, error) {
	operator, err := s.authorise(ctx, ActionManageOperators, "delete operator "+req.Name, everyWorkspace)
	if err != nil {
		return nil, err
	}
	if operator.Name == req.Name {
		return nil, fmt.Errorf("%w: an operator cannot delete itself: it might be the last admin", ErrInvalid)
	}
	hashes, err := s.Store.Items(operatorHashes).List(ctx)
	if err != nil {
		return nil, err
	}
	for _, item := range hashes {
		if string(item.Value) != req.Name {
			continue
		}
		if _, err := s.Store.Items(operatorHashes).Delete(ctx, item.Name); err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
	}
	if _, err := s.Store.Items(operators).Delete(ctx, req.Name); err != nil {
		return nil, fmt.Errorf("operator %s: %w", req.Name, err)
	}
	return &adminv1.DeleteOperatorResponse{}, nil
}
