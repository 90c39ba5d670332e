package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/controlplane/acme"
	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// defaultWorkspace is there from the cluster's first revision on: all others'
// references fall back to it.
var defaultWorkspace = config.Key{Kind: config.KindWorkspace, Name: config.DefaultWorkspace}

const (
	// applyTries bounds how often a write without a version is planned again when
	// another write came between.
	applyTries    = 8
	maxReason     = 1024
	maxWait       = 10 * time.Minute
	defaultWait   = 30 * time.Second
	maxPage       = 10000
	defaultPage   = 1000
	maxChangeKeys = 200_000
)

// Apply implements adminv1.AdminServiceServer.
func (s *Service) Apply(ctx context.Context, req *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	started := time.Now()
	operator, err := s.authorise(ctx, ActionWrite, describe(req.Change), workspacesOf(req.Change)...)
	if err != nil {
		return nil, err
	}
	if err := vetChange(req.Change, req.Reason); err != nil {
		return nil, err
	}
	version, changes, err := s.commit(ctx, req.Change, req.At, store.Meta{Author: operator.Name, Reason: req.Reason, Time: time.Now()}, nil)
	if err != nil {
		return nil, err
	}
	return &adminv1.ApplyResponse{Version: version.Proto(), Changes: changes, Convergence: s.converge(ctx, operator, version, req.WaitFor, started)}, nil
}

// Plan implements adminv1.AdminServiceServer.
func (s *Service) Plan(ctx context.Context, req *adminv1.PlanRequest) (*adminv1.PlanResponse, error) {
	if _, err := s.authorise(ctx, ActionRead, describe(req.Change), workspacesOf(req.Change)...); err != nil {
		return nil, err
	}
	if err := vetChange(req.Change, ""); err != nil {
		return nil, err
	}
	current, version, err := s.newest(ctx)
	if err != nil {
		return nil, err
	}
	resp := &adminv1.PlanResponse{At: version.Proto()}
	full, err := s.complete(ctx, req.Change, current, true)
	if err == nil {
		full = differing(current, full)
		resp.Changes = plan(current, full)
		err = accept(current, deltaOf(full))
	} else {
		resp.Changes = plan(current, differing(current, req.Change))
	}
	if problems := (config.Problems{}); errors.As(err, &problems) {
		for _, p := range problems {
			resp.Problems = append(resp.Problems, p.Proto())
		}
	} else if err != nil {
		return nil, err
	}
	return resp, nil
}

// newest returns the configuration as of the store's newest commit: this replica
// may be behind what the caller has just done at another.
func (s *Service) newest(ctx context.Context) (config.Checked, config.Version, error) {
	tip, err := s.Store.Tip(ctx)
	if err == nil {
		err = s.Mirror.Await(ctx, tip)
	}
	current, version := s.Mirror.Current()
	return current, version, err
}

// accept holds a change to every rule, and to the one that is about the moment of
// writing: see config.Expired.
func accept(current config.Checked, d config.Delta) error {
	if _, _, err := current.Apply(d); err != nil {
		return err
	}
	return config.Expired(current, d, time.Now())
}

// planTimeout bounds the wait for the version that a change was planned on.
const planTimeout = 5 * time.Second

// base returns the configuration that a change is checked against and the
// version that it is written on: the one that the caller planned on, which this
// replica must have seen, or the newest.
func (s *Service) base(ctx context.Context, at *controlv1.Version) (config.Checked, config.Version, error) {
	if at == nil {
		return s.newest(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	planned := config.VersionOf(at)
	if err := s.Mirror.Await(ctx, planned); err != nil {
		return config.Checked{}, planned, fmt.Errorf("%w: revision %s is not known", store.ErrConflict, planned)
	}
	current, _ := s.Mirror.Current()
	return current, planned, nil
}

// commit checks the change against the newest config and writes it as one
// revision. Without a version it plans again when another write came between.
// holds, which may be nil, is asked before each try: false writes nothing.
func (s *Service) commit(ctx context.Context, change *adminv1.Change, at *controlv1.Version, meta store.Meta, holds func(config.Checked) bool) (config.Version, []*adminv1.ResourceChange, error) {
	for try := 1; ; try++ {
		current, planned, err := s.base(ctx, at)
		if err != nil {
			return config.Version{}, nil, err
		}
		if holds != nil && !holds(current) {
			return config.Version{}, nil, nil
		}
		full, err := s.complete(ctx, change, current, false)
		if err != nil {
			return config.Version{}, nil, err
		}
		// What is stored already need not be looked at any further. The store refuses
		// the write should that have changed since: see Store.Apply.
		full = differing(current, full)
		if err := accept(current, deltaOf(full)); err != nil {
			return config.Version{}, nil, err
		}
		committed, err := s.Store.Apply(ctx, planned, full, meta)
		if err == nil {
			s.seen(ctx, committed)
			return committed, plan(current, full), nil
		}
		if at != nil || try == applyTries || !errors.Is(err, store.ErrConflict) {
			return config.Version{}, nil, err
		}
	}
}

// complete returns the change together with what the control plane writes with it;
// with dry set nothing is stored meanwhile.
func (s *Service) complete(ctx context.Context, change *adminv1.Change, current config.Checked, dry bool) (*adminv1.Change, error) {
	full, err := s.Issuers.Complete(ctx, change, current, dry)
	if err != nil {
		return nil, err
	}
	return acme.Complete(full, current), nil
}

// seen waits until this replica has taken a commit over and told its nodes, so that
// who reads or waits next meets it. It is committed whatever becomes of that.
func (s *Service) seen(ctx context.Context, committed config.Version) {
	if err := s.Mirror.Await(ctx, committed); err != nil {
		s.Log.Warn("a committed revision has not come back yet", "revision", committed.String(), "error", err)
	}
}

// converge waits for the nodes and says what of it the operator may know.
func (s *Service) converge(ctx context.Context, operator *adminv1.Operator, version config.Version, wait *durationpb.Duration, started time.Time) *adminv1.Convergence {
	if wait == nil || wait.AsDuration() <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, min(wait.AsDuration(), maxWait))
	defer cancel()
	convergence := s.Cluster.AwaitConvergence(ctx, version)
	convergence.Behind = shown(convergence.Behind, operator)
	convergence.Took = durationpb.New(time.Since(started))
	return convergence
}

// List implements adminv1.AdminServiceServer.
func (s *Service) List(ctx context.Context, req *adminv1.ListRequest) (*adminv1.ListResponse, error) {
	var targets []string
	if req.Workspace != "" {
		targets = []string{req.Workspace}
	}
	operator, err := s.authorise(ctx, ActionRead, "list "+req.Kind, targets...)
	if err != nil {
		return nil, err
	}
	if req.Kind != "" && !slices.Contains(config.Kinds(), req.Kind) {
		return nil, fmt.Errorf("%w: unknown kind %q, expected one of %v", ErrInvalid, req.Kind, config.Kinds())
	}
	size := int(req.PageSize)
	if size <= 0 {
		size = defaultPage
	}
	size = min(size, maxPage)
	if req.Kind == "Credential" {
		return s.listCredentials(ctx, operator, req, size)
	}
	var after config.Key
	if req.PageToken != "" {
		if after, err = config.ParseKey(req.PageToken); err != nil {
			return nil, fmt.Errorf("%w: page_token: %w", ErrInvalid, err)
		}
	}
	current, version := s.Mirror.Current()
	resp := &adminv1.ListResponse{Version: version.Proto()}
	for resource := range current.All() {
		key := config.KeyOf(resource)
		if !visible(operator, key) || req.Kind != "" && key.Kind != req.Kind ||
			req.Workspace != "" && key.Workspace != req.Workspace || req.PageToken != "" && key.Compare(after) <= 0 {
			continue
		}
		if len(resp.Resources) == size {
			resp.NextPageToken = config.KeyOf(resp.Resources[size-1]).String()
			break
		}
		resp.Resources = append(resp.Resources, config.Redact(resource))
	}
	return resp, nil
}

// visible says whether the operator may see a resource. A Workspace is seen by
// those who may see what is in it.
func visible(operator *adminv1.Operator, key config.Key) bool {
	return covers(operator, scopeOf(key))
}

// scopeOf is the workspace that an operator must cover to touch the resource.
// The Gateway and Workspaces bind others, so to write them takes all workspaces;
// writes ask writeScope.
func scopeOf(key config.Key) string {
	if key.Kind == "Workspace" {
		return key.Name
	}
	return key.Workspace
}

func writeScope(key config.Key) string {
	if key.Kind == "Workspace" || key.Kind == "Gateway" {
		return everyWorkspace
	}
	return scopeOf(key)
}

// Get implements adminv1.AdminServiceServer.
func (s *Service) Get(ctx context.Context, req *adminv1.GetRequest) (*adminv1.GetResponse, error) {
	key := config.Key{Kind: req.Kind, Workspace: req.Workspace, Name: req.Name}
	switch {
	case key.Kind == config.KindWorkspace:
		key.Workspace = "" // REST cannot leave it out
	case key.Workspace == "":
		key.Workspace = config.DefaultWorkspace
	}
	if _, err := s.authorise(ctx, ActionRead, key.String(), scopeOf(key)); err != nil {
		return nil, err
	}
	current, version := s.Mirror.Current()
	resource, ok := current.Get(key)
	if !ok && key.Kind == "Credential" {
		var err error
		if resource, err = s.Store.GetCredential(ctx, key.Workspace, key.Name); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		ok = true
	}
	if !ok {
		return nil, fmt.Errorf("%s: %w", key, store.ErrNotFound)
	}
	return &adminv1.GetResponse{Resource: config.Redact(resource), Version: version.Proto()}, nil
}

// Wait implements adminv1.AdminServiceServer.
func (s *Service) Wait(ctx context.Context, req *adminv1.WaitRequest) (*adminv1.WaitResponse, error) {
	started := time.Now()
	operator, err := s.authorise(ctx, ActionRead, "wait")
	if err != nil {
		return nil, err
	}
	_, version := s.Mirror.Current()
	if req.Revision > 0 {
		version.Revision = req.Revision
	}
	wait := req.Timeout
	if wait == nil {
		wait = durationpb.New(defaultWait)
	}
	return &adminv1.WaitResponse{Version: version.Proto(), Convergence: s.converge(ctx, operator, version, wait, started)}, nil
}

// differing returns the change without the documents that current holds just as
// they are.
func differing(current config.Checked, change *adminv1.Change) *adminv1.Change {
	return &adminv1.Change{Upserts: current.Changes(change.GetUpserts()), Deletes: change.GetDeletes()}
}

// plan says what the change would change of what operators write, field by field.
func plan(current config.Checked, change *adminv1.Change) []*adminv1.ResourceChange {
	var changes []*adminv1.ResourceChange
	for _, after := range change.GetUpserts() {
		key := config.KeyOf(after)
		if !config.OperatorMayWrite(key.Kind) {
			continue
		}
		before, exists := current.Get(key)
		action := adminv1.Action_ACTION_UPDATE
		if !exists {
			action, before = adminv1.Action_ACTION_CREATE, nil
		}
		fields := config.Diff(before, after)
		if exists && len(fields) == 0 {
			continue
		}
		changes = append(changes, &adminv1.ResourceChange{Key: key.Proto(), Action: action, Fields: fields})
	}
	for _, deleted := range change.GetDeletes() {
		key := config.KeyOfProto(deleted)
		if before, exists := current.Get(key); exists && config.OperatorMayWrite(key.Kind) {
			changes = append(changes, &adminv1.ResourceChange{Key: deleted, Action: adminv1.Action_ACTION_DELETE, Fields: config.Diff(before, nil)})
		}
	}
	return changes
}

// deltaOf hands the change's documents over to the configuration: nobody modifies
// them any more.
func deltaOf(change *adminv1.Change) config.Delta {
	delta := config.Delta{Upserts: change.Upserts, Owned: true}
	for _, key := range change.Deletes {
		delta.Deletes = append(delta.Deletes, config.KeyOfProto(key))
	}
	return delta
}

// vetChange refuses what no operator may write, whatever the config.
func vetChange(change *adminv1.Change, reason string) error {
	if len(change.GetUpserts())+len(change.GetDeletes()) == 0 {
		return fmt.Errorf("%w: the change is empty: name at least one document", ErrInvalid)
	}
	if len(change.Upserts)+len(change.Deletes) > maxChangeKeys {
		return fmt.Errorf("%w: the change has more than %d documents: split it", ErrInvalid, maxChangeKeys)
	}
	if len(reason) > maxReason {
		return fmt.Errorf("%w: the reason is longer than %d bytes", ErrInvalid, maxReason)
	}
	keys := make([]config.Key, 0, len(change.Upserts)+len(change.Deletes))
	for _, r := range change.Upserts {
		if r.GetMetadata() == nil || r.Spec == nil {
			return fmt.Errorf("%w: a document needs metadata and a spec of one kind", ErrInvalid)
		}
		normalise(r)
		keys = append(keys, config.KeyOf(r))
	}
	for _, k := range change.Deletes {
		key := config.KeyOfProto(k)
		if key == defaultWorkspace {
			return fmt.Errorf("%w: the workspace %s exists from the start and cannot be deleted", ErrInvalid, key.Name)
		}
		keys = append(keys, key)
	}
	seen := make(map[config.Key]bool, len(keys))
	for _, key := range keys {
		if seen[key] {
			return fmt.Errorf("%w: %s is named twice in one change", ErrInvalid, key)
		}
		seen[key] = true
		if !config.OperatorMayWrite(key.Kind) {
			return fmt.Errorf("%w: %s: the control plane alone writes resources of this kind", ErrInvalid, key)
		}
		if key.Kind == "Credential" {
			return fmt.Errorf("%w: %s: credentials are written with `portcullis key create` and `key revoke`", ErrInvalid, key)
		}
	}
	return nil
}

// normalise fills in the workspace that a document left out.
func normalise(r *configv1.Resource) {
	if _, ok := r.Spec.(*configv1.Resource_Workspace); !ok && r.Metadata.Workspace == "" {
		r.Metadata.Workspace = config.DefaultWorkspace
	}
}

// workspacesOf lists what an operator must cover to write the change.
func workspacesOf(change *adminv1.Change) []string {
	var scopes []string
	add := func(key config.Key) {
		if scope := writeScope(key); !slices.Contains(scopes, scope) {
			scopes = append(scopes, scope)
		}
	}
	for _, r := range change.GetUpserts() {
		if r.GetMetadata() != nil && r.Spec != nil {
			normalise(r)
			add(config.KeyOf(r))
		}
	}
	for _, key := range change.GetDeletes() {
		add(config.KeyOfProto(key))
	}
	if len(scopes) == 0 {
		return []string{everyWorkspace}
	}
	return scopes
}

// describe names a change in the audit log, shortly.
func describe(change *adminv1.Change) string {
	switch n := len(change.GetUpserts()) + len(change.GetDeletes()); {
	case n == 1 && len(change.Upserts) == 1 && change.Upserts[0].GetMetadata() != nil && change.Upserts[0].Spec != nil:
		return config.KeyOf(change.Upserts[0]).String()
	case n == 1 && len(change.Deletes) == 1:
		return "delete " + config.KeyOfProto(change.Deletes[0]).String()
	default:
		return fmt.Sprintf("%d documents", n)
	}
}

// WriteKeySet commits a key set on the control plane's own behalf, which was
// fetched for the issuer as declared. It does nothing when the issuer is gone or
// takes its keys from elsewhere now, or when a newer set is there.
func (s *Service) WriteKeySet(ctx context.Context, set *configv1.Resource, issuer *configv1.Issuer) error {
	key := config.KeyOf(set)
	holds := func(current config.Checked) bool {
		declared, ok := current.Get(config.Key{Kind: config.KindIssuer, Workspace: key.Workspace, Name: key.Name})
		stored, _ := current.Get(key)
		return ok && declared.GetIssuer().JwksUri == issuer.JwksUri && slices.Equal(declared.GetIssuer().Algorithms, issuer.Algorithms) &&
			!stored.GetKeySet().GetFetchedAt().AsTime().After(set.GetKeySet().GetFetchedAt().AsTime())
	}
	_, _, err := s.commit(ctx, &adminv1.Change{Upserts: []*configv1.Resource{proto.CloneOf(set)}}, nil,
		store.Meta{Author: "system", Reason: "keys of " + issuer.Issuer, Time: time.Now()}, holds)
	return err
}

// WriteIssued commits what ACME has brought for a Certificate, or what it needs to,
// on the control plane's own behalf. It writes nothing and returns false when the
// Certificate is gone or asks for something else than spec now.
func (s *Service) WriteIssued(ctx context.Context, certificate config.Key, spec *configv1.ACME, issued *configv1.IssuedCertificate, reason string) (config.Version, bool, error) {
	written := false
	holds := func(current config.Checked) bool {
		declared, ok := current.Get(certificate)
		written = ok && declared.GetCertificate().GetAcme() != nil && proto.Equal(declared.GetCertificate().Acme, spec)
		return written
	}
	resource := &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: certificate.Workspace, Name: certificate.Name},
		Spec:     &configv1.Resource_IssuedCertificate{IssuedCertificate: proto.CloneOf(issued)},
	}
	version, _, err := s.commit(ctx, &adminv1.Change{Upserts: []*configv1.Resource{resource}}, nil,
		store.Meta{Author: "system", Reason: reason, Time: time.Now()}, holds)
	return version, written, err
}
