package stream

import (
	"strings"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Bounds of what is kept of a node's condition, whatever the node sends.
const (
	maxConditions   = 100
	maxConditionLen = 512 // bytes of a text
)

// condition replaces what the node says of how it is. The message is its own
// stream's, and so may be cut.
func (r *registry) condition(n *node, m *controlv1.Condition) {
	m.Endpoints = m.Endpoints[:min(len(m.Endpoints), maxConditions)]
	m.Listeners = m.Listeners[:min(len(m.Listeners), maxConditions)]
	m.Overload = cut(m.Overload)
	for _, e := range m.Endpoints {
		e.Workspace, e.Upstream, e.Address, e.Reason, e.Detail = cut(e.Workspace), cut(e.Upstream), cut(e.Address), cut(e.Reason), cut(e.Detail)
	}
	for _, l := range m.Listeners {
		l.Name, l.Address, l.Problem = cut(l.Name), cut(l.Address), cut(l.Problem)
	}
	r.update(n, func(s *controlv1.NodeStatus) { s.Condition = m })
}

func cut(s string) string {
	if len(s) <= maxConditionLen {
		return s
	}
	return strings.ToValidUTF8(s[:maxConditionLen], "")
}
