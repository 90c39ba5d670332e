package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Problem is one reason why a configuration is refused. It is an error. File,
// Line and Column (from 1) are set when the source is known; Path is a field path
// as written in YAML, such as spec.policies[1].jwt.issuers[0].
type Problem struct {
	Key          Key
	Path, File   string
	Line, Column int
	// Reason says what is wrong and what was expected.
	Reason string
}

// Error returns "file:line:column: Kind workspace/name: path: reason" without the
// parts that are not known.
func (p *Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File + ":")
	}
	if p.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", p.Line, p.Column)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if p.Key != (Key{}) {
		b.WriteString(clip(p.Key.String()) + ": ")
	}
	if p.Path != "" {
		b.WriteString(clip(p.Path) + ": ")
	}
	b.WriteString(clip(p.Reason))
	return b.String()
}

// maxText is how much of a text that may be the document's own a problem shows,
// in bytes: a refusal of a megabyte would not reach who reads it.
const maxText = 1024

// clip shortens a text that is longer.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + fmt.Sprintf("... (%d bytes)", len(s))
}

// Proto returns the message.
func (p *Problem) Proto() *controlv1.Problem {
	m := &controlv1.Problem{Path: clip(p.Path), File: p.File, Line: int32(p.Line), Column: int32(p.Column), Reason: clip(p.Reason)}
	if p.Key != (Key{}) {
		m.Resource = clip(p.Key.String())
	}
	return m
}

// ProblemOf reads a message. A resource that is no key is kept in the reason.
func ProblemOf(m *controlv1.Problem) *Problem {
	p := &Problem{Path: m.GetPath(), File: m.GetFile(), Line: int(m.GetLine()), Column: int(m.GetColumn()), Reason: m.GetReason()}
	if m.GetResource() != "" {
		key, err := ParseKey(m.GetResource())
		if err != nil {
			p.Reason = m.GetResource() + ": " + p.Reason
		}
		p.Key = key
	}
	return p
}

// Problems is an error made of many, sorted by place.
type Problems []*Problem

// Error returns one problem a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find a single Problem.
func (ps Problems) Unwrap() []error {
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = p
	}
	return errs
}

// Proto returns the messages.
func (ps Problems) Proto() []*controlv1.Problem {
	out := make([]*controlv1.Problem, len(ps))
	for i, p := range ps {
		out[i] = p.Proto()
	}
	return out
}

// sorted sorts, drops repetitions, and returns nil when there are none.
func (ps Problems) sorted() error {
	if len(ps) == 0 {
		return nil
	}
	slices.SortFunc(ps, func(a, b *Problem) int {
		return cmp.Or(
			strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			a.Key.Compare(b.Key), strings.Compare(a.Path, b.Path), strings.Compare(a.Reason, b.Reason))
	})
	return slices.CompactFunc(ps, func(a, b *Problem) bool { return *a == *b })
}
