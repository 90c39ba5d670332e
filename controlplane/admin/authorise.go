package admin

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// Action is what an operator wants to do; it is the audit log's word for it.
type Action string

// The actions. Each role's are in permissions.
const (
	ActionRead            Action = "read"
	ActionWrite           Action = "write_config"
	ActionKeys            Action = "manage_keys"
	ActionMint            Action = "mint_token"
	ActionRevoke          Action = "revoke"
	ActionNodes           Action = "admit_nodes"
	ActionManageOperators Action = "manage_operators"
)

// permissions is the whole of who may do what.
var permissions = map[adminv1.Role][]Action{
	adminv1.Role_ROLE_VIEWER:   {ActionRead},
	adminv1.Role_ROLE_EDITOR:   {ActionRead, ActionWrite},
	adminv1.Role_ROLE_SECURITY: {ActionRead, ActionKeys, ActionRevoke, ActionMint},
	adminv1.Role_ROLE_ADMIN:    {ActionRead, ActionWrite, ActionKeys, ActionMint, ActionRevoke, ActionNodes, ActionManageOperators},
}

// everyWorkspace as a target needs an operator that is not bound to workspaces.
const everyWorkspace = "*"

// Why an operator is refused. The edge translates them to a gRPC status.
var (
	// ErrUnauthenticated: no credential, or not one of ours.
	ErrUnauthenticated = errors.New("no valid operator credential: send it as 'Authorization: Bearer pco_...'")
	// ErrForbidden: the operator is known and may not.
	ErrForbidden = errors.New("forbidden")
	// ErrUnavailable: whether the caller may cannot be found out now. What failed is
	// for the log: the caller may be anybody.
	ErrUnavailable = errors.New("the store does not answer: try again")
)

// operators is the room of the store that holds them, by name; operatorHashes
// maps the SHA-256 of a credential, in hex, to the name.
const (
	operators      = "operators"
	operatorHashes = "operator-credentials"
)

// authorise is the one way in: it finds the operator behind the credential of
// ctx, decides whether it may do the action in every one of the workspaces, and
// writes the decision to the audit log, whichever way it went. Every method of
// the service calls it before anything else. The operator is read from the store
// each time, so that a deleted one is out at once.
func (s *Service) authorise(ctx context.Context, action Action, target string, workspaces ...string) (*adminv1.Operator, error) {
	operator, err := s.operatorOf(ctx)
	if err == nil {
		err = permitted(operator, action, workspaces)
	}
	name := "(unknown)"
	if operator != nil {
		name = operator.Name
	}
	level, outcome := slog.LevelInfo, "allowed"
	if err != nil {
		level, outcome = slog.LevelWarn, "denied"
	}
	s.Audit.LogAttrs(ctx, level, "admin", slog.String("operator", name), slog.String("action", string(action)),
		slog.String("target", cut(target)), slog.Any("workspaces", workspaces[:min(len(workspaces), maxAudited)]), slog.String("outcome", outcome), slog.Time("at", time.Now()))
	if err != nil {
		return nil, err
	}
	return operator, nil
}

// still is authorise for a call that goes on: it looks the operator up again, and
// audits only that the permission is gone.
func (s *Service) still(ctx context.Context, operator *adminv1.Operator, action Action, target string) (*adminv1.Operator, error) {
	now, err := s.operatorOf(ctx)
	if err == nil && now.Name == operator.Name && permitted(now, action, nil) == nil {
		return now, nil
	}
	return s.authorise(ctx, action, target)
}

// What a record of the audit log holds of a call's own words, since strangers
// write there too.
const (
	maxAudited     = 16
	maxAuditedText = 256
)

func cut(text string) string { return strings.ToValidUTF8(text[:min(len(text), maxAuditedText)], "") }

func permitted(operator *adminv1.Operator, action Action, workspaces []string) error {
	if !slices.Contains(permissions[operator.Role], action) {
		return fmt.Errorf("%w: the role %s may not %s", ErrForbidden, roleName(operator.Role), strings.ReplaceAll(string(action), "_", " "))
	}
	for _, workspace := range workspaces {
		if !covers(operator, workspace) {
			if workspace == everyWorkspace {
				return fmt.Errorf("%w: this concerns every workspace, and the operator %s is bound to %s", ErrForbidden, operator.Name, strings.Join(operator.Workspaces, ", "))
			}
			return fmt.Errorf("%w: the operator %s is bound to %s, not to %s", ErrForbidden, operator.Name, strings.Join(operator.Workspaces, ", "), workspace)
		}
	}
	return nil
}

// covers says whether the operator's scope includes the workspace.
func covers(operator *adminv1.Operator, workspace string) bool {
	return len(operator.Workspaces) == 0 || workspace != everyWorkspace && slices.Contains(operator.Workspaces, workspace)
}

func roleName(role adminv1.Role) string {
	return strings.ToLower(strings.TrimPrefix(role.String(), "ROLE_"))
}

// operatorOf finds the operator whose credential ctx carries. The look-up is by
// SHA-256 of 256 random bits, so its time tells nothing about a guess.
func (s *Service) operatorOf(ctx context.Context) (*adminv1.Operator, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	return s.operatorBy(ctx, md.Get("authorization"))
}

// Knows says whether the values of an Authorization field are an operator's. It
// authorises nothing: it is for deciding how much of a request to read.
func (s *Service) Knows(ctx context.Context, authorization []string) bool {
	_, err := s.operatorBy(ctx, authorization)
	return err == nil
}

func (s *Service) operatorBy(ctx context.Context, values []string) (*adminv1.Operator, error) {
	if len(values) != 1 {
		return nil, ErrUnauthenticated
	}
	credential, ok := strings.CutPrefix(values[0], "Bearer ")
	if !ok {
		return nil, ErrUnauthenticated
	}
	digest, err := identity.ParseOperatorCredential(credential)
	if err != nil {
		return nil, ErrUnauthenticated
	}
	name, err := s.Store.Items(operatorHashes).Get(ctx, hex.EncodeToString(digest[:]))
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrUnauthenticated
	}
	if err != nil {
		s.Log.ErrorContext(ctx, "reading operators", "error", err)
		return nil, ErrUnavailable
	}
	return s.readOperator(ctx, string(name.Value))
}

func (s *Service) readOperator(ctx context.Context, name string) (*adminv1.Operator, error) {
	item, err := s.Store.Items(operators).Get(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrUnauthenticated
	}
	if err != nil {
		s.Log.ErrorContext(ctx, "reading operators", "error", err)
		return nil, ErrUnavailable
	}
	operator := &adminv1.Operator{}
	if err := proto.Unmarshal(item.Value, operator); err != nil {
		return nil, fmt.Errorf("reading operator %s: %w", name, err)
	}
	return operator, nil
}
