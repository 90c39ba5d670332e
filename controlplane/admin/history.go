package admin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	defaultHistory = 50
	maxHistory     = 1000
)

// History implements adminv1.AdminServiceServer.
func (s *Service) History(ctx context.Context, req *adminv1.HistoryRequest) (*adminv1.HistoryResponse, error) {
	var targets []string
	if req.Workspace != "" {
		targets = []string{req.Workspace}
	}
	operator, err := s.authorise(ctx, ActionRead, "history", targets...)
	if err != nil {
		return nil, err
	}
	limit := int(req.Limit)
	if limit <= 0 {
		limit = defaultHistory
	}
	limit = min(limit, maxHistory)
	resp := &adminv1.HistoryResponse{}
	// Further pages are read in place of what the operator may not see.
	for before := req.Before; ; {
		records, err := s.Store.History(ctx, before, limit, req.Workspace)
		if err != nil {
			return nil, err
		}
		for _, record := range records {
			before = record.Version.Revision
			if entry := entryOf(record, operator, req.Workspace); entry != nil {
				resp.Entries = append(resp.Entries, entry)
			}
			if len(resp.Entries) == limit {
				return resp, nil
			}
		}
		if len(records) < limit {
			return resp, nil
		}
	}
}

// entryOf shows the part of a record that the operator may see; nil when that is
// nothing.
func entryOf(record *store.HistoryRecord, operator *adminv1.Operator, workspace string) *adminv1.HistoryEntry {
	entry := &adminv1.HistoryEntry{
		Version: record.Version.Proto(), Time: timestamppb.New(record.Time), Author: record.Author, Reason: record.Reason,
	}
	for _, change := range record.Edits {
		key := change.Key
		if !visible(operator, key) || workspace != "" && scopeOf(key) != workspace {
			continue
		}
		action := adminv1.Action_ACTION_UPDATE
		switch {
		case change.Before == nil:
			action = adminv1.Action_ACTION_CREATE
		case change.After == nil:
			action = adminv1.Action_ACTION_DELETE
		}
		entry.Changes = append(entry.Changes, &adminv1.ResourceChange{
			Key: key.Proto(), Action: action, Fields: config.Diff(change.Before, change.After),
		})
	}
	// A revocation holds in every workspace, so it is shown to those who see all.
	if workspace == "" && covers(operator, everyWorkspace) {
		for _, revoked := range record.Revocations {
			entry.Revocations = append(entry.Revocations, revoked.Kind)
		}
	}
	if len(entry.Changes)+len(entry.Revocations) == 0 {
		return nil
	}
	return entry
}

// Watch implements adminv1.AdminServiceServer: it sends the history after a
// version, then each new entry as its revision is committed.
func (s *Service) Watch(req *adminv1.WatchRequest, stream adminv1.AdminService_WatchServer) error {
	ctx := stream.Context()
	operator, err := s.authorise(ctx, ActionRead, "watch")
	if err != nil {
		return err
	}
	_, version, err := s.newest(ctx)
	if err != nil {
		return err
	}
	if version, err = watchedFrom(req.After, version); err != nil {
		return err
	}
	for {
		// Before the history is read: a commit in between must wake the wait below.
		_, seen := s.Mirror.Current()
		if seen.Epoch != version.Epoch {
			return fmt.Errorf("%w: the store was restored, and revisions count anew: list, then watch again", store.ErrCompacted)
		}
		records, err := s.since(ctx, version.Revision)
		if err != nil {
			return err
		}
		// The operator may have been deleted or bound since.
		if len(records) > 0 {
			if operator, err = s.still(ctx, operator, ActionRead, "watch"); err != nil {
				return err
			}
		}
		for _, record := range records {
			version = record.Version
			if entry := entryOf(record, operator, ""); entry != nil {
				if err := stream.Send(&adminv1.WatchResponse{Entry: entry}); err != nil {
					return err
				}
			}
		}
		next := config.Version{Epoch: version.Epoch, Revision: max(seen.Revision, version.Revision) + 1}
		if len(records) > 0 {
			continue
		}
		if err := s.Mirror.Await(ctx, next); err != nil {
			return err
		}
	}
}

// watchedFrom returns where a watch begins: after what the caller names, whose
// epoch is the current one when left out, or after the newest.
func watchedFrom(after *controlv1.Version, newest config.Version) (config.Version, error) {
	if after == nil {
		return newest, nil
	}
	from := config.VersionOf(after)
	if from.Epoch == 0 {
		from.Epoch = newest.Epoch
	}
	if from.Compare(newest) > 0 {
		return from, fmt.Errorf("%w: revision %s is newer than the newest, %s", ErrInvalid, from, newest)
	}
	return from, nil
}

// watchPage is how many records a watch reads at once: it seldom lacks more.
const watchPage = 64

// since returns the history after a revision, oldest first.
func (s *Service) since(ctx context.Context, revision int64) ([]*store.HistoryRecord, error) {
	var found []*store.HistoryRecord
	for before := int64(0); ; {
		page, err := s.Store.History(ctx, before, watchPage, "")
		if err != nil {
			return nil, err
		}
		for _, record := range page {
			if record.Version.Revision <= revision {
				slices.Reverse(found)
				return found, nil
			}
			found = append(found, record)
			before = record.Version.Revision
		}
		if len(page) < watchPage {
			slices.Reverse(found)
			return found, nil
		}
	}
}

// Rollback implements adminv1.AdminServiceServer: it writes a new revision whose
// operator-written resources are those of an older one. Revocations, credentials
// and fetched keys are not config and stay as they are.
func (s *Service) Rollback(ctx context.Context, req *adminv1.RollbackRequest) (*adminv1.RollbackResponse, error) {
	started := time.Now()
	operator, err := s.authorise(ctx, ActionWrite, fmt.Sprintf("rollback to %d", req.Revision), everyWorkspace)
	if err != nil {
		return nil, err
	}
	if len(req.Reason) > maxReason {
		return nil, fmt.Errorf("%w: the reason is longer than %d bytes", ErrInvalid, maxReason)
	}
	current, version, err := s.newest(ctx)
	if err != nil {
		return nil, err
	}
	if req.Revision <= 0 || req.Revision > version.Revision {
		return nil, fmt.Errorf("%w: revision %d is not in the history: `portcullis history` lists what is", ErrInvalid, req.Revision)
	}
	wanted, err := s.Store.At(ctx, req.Revision)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(wanted, func(r *configv1.Resource) bool { return config.KeyOf(r) == defaultWorkspace }) {
		return nil, fmt.Errorf("%w: revision %d is before the cluster's first configuration: `portcullis history` lists what there is", ErrInvalid, req.Revision)
	}
	change := difference(current, wanted)
	reason := req.Reason
	if reason == "" {
		reason = fmt.Sprintf("rollback to revision %d", req.Revision)
	}
	if len(change.Upserts)+len(change.Deletes) == 0 {
		return &adminv1.RollbackResponse{Version: version.Proto(), Convergence: s.converge(ctx, operator, version, req.WaitFor, started)}, nil
	}
	committed, changes, err := s.commit(ctx, change, version.Proto(), store.Meta{Author: operator.Name, Reason: reason, Time: time.Now()}, nil)
	if err != nil {
		return nil, err
	}
	return &adminv1.RollbackResponse{Version: committed.Proto(), Changes: changes, Convergence: s.converge(ctx, operator, committed, req.WaitFor, started)}, nil
}

// difference is the change that turns current into wanted. An Application that is
// disabled stays disabled: to disable takes access away, and that is never rolled
// back.
func difference(current config.Checked, wanted []*configv1.Resource) *adminv1.Change {
	change := &adminv1.Change{}
	keep := make(map[config.Key]bool, len(wanted))
	for _, resource := range wanted {
		key := config.KeyOf(resource)
		if !config.OperatorMayWrite(key.Kind) {
			continue
		}
		keep[key] = true
		if now, ok := current.Get(key); ok && now.GetApplication().GetDisabled() {
			resource = proto.CloneOf(resource)
			resource.GetApplication().Disabled = true
		}
		if before, ok := current.Get(key); !ok || len(config.Diff(before, resource)) > 0 {
			change.Upserts = append(change.Upserts, resource)
		}
	}
	for resource := range current.All() {
		if key := config.KeyOf(resource); config.OperatorMayWrite(key.Kind) && !keep[key] {
			change.Deletes = append(change.Deletes, key.Proto())
		}
	}
	return change
}
