package gateway

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/pkg/config"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// decisionSlots is how many of the newest decisions a node remembers.
const decisionSlots = 8192

// Decisions is the node's ring of its newest decisions, for `portcullis why`. It
// is bounded in count and in bytes, allocates nothing once warm, and holds no
// secret: neither header values nor queries. It is safe for concurrent use.
type Decisions struct {
	node  string
	next  atomic.Uint64
	slots [decisionSlots]slot
}

// slot keeps all strings of one decision in one reused buffer.
type slot struct {
	mu       sync.Mutex
	text     []byte
	ends     [decisionTexts]uint16
	at       time.Time
	version  config.Version
	status   int32
	duration time.Duration
	peer     netip.Addr
}

// decision is one request as it was decided. Its strings are copied.
type decision struct {
	text     [decisionTexts]string
	at       time.Time
	version  config.Version
	status   int
	duration time.Duration
	peer     netip.Addr
}

// The texts of a decision, in the order they lie in a slot.
const (
	textID = iota
	textMethod
	textHost
	textPath
	textRoute
	textWorkspace
	textReason
	textPolicy
	textRule
	textDetail
	textAuth
	textSubject
	textClient
	textIssuer
	textUpstream
	textTrace
	decisionTexts
)

// maxDecisionText bounds each text: a path may be 64 KiB, a reason to keep all
// of it is not known.
const maxDecisionText = 256

// NewDecisions returns an empty ring; node names the node in the records.
func NewDecisions(node string) *Decisions { return &Decisions{node: node} }

func (d *Decisions) record(rec *decision) {
	s := &d.slots[d.next.Add(1)%decisionSlots]
	s.mu.Lock()
	defer s.mu.Unlock()
	length := 0
	for _, text := range rec.text {
		length += min(len(text), maxDecisionText)
	}
	s.text = slices.Grow(s.text[:0], length)
	for i, text := range rec.text {
		s.text = append(s.text, text[:min(len(text), maxDecisionText)]...)
		s.ends[i] = uint16(len(s.text))
	}
	s.at, s.version, s.status, s.duration, s.peer = rec.at, rec.version, int32(rec.status), rec.duration, rec.peer
}

// Decision returns what was decided on the request with the id, while the ring
// still holds it. It implements follow.Decisions.
func (d *Decisions) Decision(id string) (*controlv1.DecisionRecord, bool) {
	if id == "" {
		return nil, false
	}
	// Newest first: people ask about what just happened.
	head := d.next.Load()
	for i := range uint64(decisionSlots) {
		if rec, ok := d.slots[(head-i)%decisionSlots].read(id); ok {
			rec.Node = d.node
			return rec, true
		}
	}
	return nil, false
}

func (s *slot) read(id string) (*controlv1.DecisionRecord, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(s.text[:s.ends[textID]]) != id {
		return nil, false
	}
	text := func(i int) string {
		// A cut may fall inside a character; protobuf strings are UTF-8.
		return strings.ToValidUTF8(string(s.text[s.ends[i-1]:s.ends[i]]), "\uFFFD")
	}
	rec := &controlv1.DecisionRecord{
		RequestId: id, Time: timestamppb.New(s.at), Version: s.version.Proto(), Status: s.status,
		Duration: durationpb.New(s.duration),
		Method:   text(textMethod), Host: text(textHost), Path: text(textPath), Route: text(textRoute),
		Workspace: text(textWorkspace), Reason: text(textReason), Policy: text(textPolicy), Rule: text(textRule),
		Detail: text(textDetail), AuthMethod: text(textAuth), Subject: text(textSubject), Client: text(textClient),
		Issuer: text(textIssuer), Upstream: text(textUpstream), TraceId: text(textTrace),
	}
	if s.peer.IsValid() {
		rec.Peer = s.peer.String()
	}
	return rec, true
}
