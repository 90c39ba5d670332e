package follow

import (
	"google.golang.org/protobuf/proto"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Bounds of what waits to be sent; what is beyond them is dropped, since the
// other side asks again.
const (
	maxDecisions  = 64
	maxKeyMissing = 64
)

// outbox is what the node has to say. The follower's lock guards it.
type outbox struct {
	woken     chan struct{} // cap 1
	reports   []*controlv1.Report
	decisions []*controlv1.Decision
	missing   []*controlv1.KeyMissing
	// condition is the newest; told says that this session has heard it.
	condition *controlv1.Condition
	told      bool
	// lacks says that revocations are to be asked for.
	lacks bool
}

func (o *outbox) wake() {
	select {
	case o.woken <- struct{}{}:
	default:
	}
}

// report queues a report. There are few: one for the update in flight, and one
// for each question after the state.
func (o *outbox) report(r *controlv1.Report) {
	o.reports = append(o.reports, r)
	o.wake()
}

func (o *outbox) decision(d *controlv1.Decision) {
	if len(o.decisions) < maxDecisions {
		o.decisions = append(o.decisions, d)
		o.wake()
	}
}

func (o *outbox) keyMissing(workspace, issuer string) {
	if len(o.missing) >= maxKeyMissing {
		return
	}
	for _, m := range o.missing {
		if m.GetWorkspace() == workspace && m.GetIssuer() == issuer {
			return
		}
	}
	o.missing = append(o.missing, &controlv1.KeyMissing{Workspace: workspace, Issuer: issuer})
	o.wake()
}

func (o *outbox) ask() {
	o.lacks = true
	o.wake()
}

// tell replaces the condition.
func (o *outbox) tell(c *controlv1.Condition) {
	if proto.Equal(o.condition, c) {
		return
	}
	o.condition, o.told = c, false
	o.wake()
}

// reset drops what was meant for a session that has ended. The next one takes a
// node for well until it hears otherwise.
func (o *outbox) reset() {
	o.reports, o.decisions, o.lacks = nil, nil, false
	o.told = proto.Size(o.condition) == 0
}

// take empties the outbox.
func (o *outbox) take() []*controlv1.FollowRequest {
	var out []*controlv1.FollowRequest
	for _, r := range o.reports {
		out = append(out, &controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Report{Report: r}})
	}
	for _, d := range o.decisions {
		out = append(out, &controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Decision{Decision: d}})
	}
	for _, m := range o.missing {
		out = append(out, &controlv1.FollowRequest{Kind: &controlv1.FollowRequest_KeyMissing{KeyMissing: m}})
	}
	if !o.told && o.condition != nil {
		out = append(out, &controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Condition{Condition: o.condition}})
	}
	o.reports, o.decisions, o.missing, o.told = nil, nil, nil, true
	return out
}
