package gateway

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/dataplane/exchange"
)

func named(id string) *decision {
	d := &decision{status: 200}
	d.text[textID] = id
	return d
}

func TestDecisionsAreBounded(t *testing.T) {
	ring := NewDecisions("n1")
	if _, ok := ring.Decision(""); ok {
		t.Error("an empty ring remembers")
	}
	id := func(i int) string { return fmt.Sprintf("request-%06d", i) }
	for i := range 2*decisionSlots + 7 {
		ring.record(named(id(i)))
	}
	for i, want := range map[int]bool{0: false, decisionSlots + 6: false, decisionSlots + 7: true, 2*decisionSlots + 6: true, 2*decisionSlots + 7: false} {
		if rec, ok := ring.Decision(id(i)); ok != want || ok && (rec.RequestId != id(i) || rec.Node != "n1") {
			t.Errorf("%s: %v", id(i), rec)
		}
	}
	if _, ok := ring.Decision(""); ok {
		t.Error("no id is an id")
	}
	// An id that a client chose twice: the newest answers.
	second := named(id(2*decisionSlots + 6))
	second.status = 404
	ring.record(second)
	if rec, _ := ring.Decision(id(2*decisionSlots + 6)); rec.GetStatus() != 404 {
		t.Error("an older decision hides the newer one")
	}
}

// Whatever bytes a request brings, what comes out is cut, valid UTF-8, and each
// text in its own field.
func TestDecisionTexts(t *testing.T) {
	ring := NewDecisions("n1")
	text := rapid.OneOf(rapid.Just(""), rapid.String(), rapid.StringN(200, 300, -1), rapid.Just(strings.Repeat("x", 70_000)),
		rapid.Just(strings.Repeat("ü", 300)), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
	rapid.Check(t, func(t *rapid.T) {
		d := named("request-1")
		for i := textID + 1; i < decisionTexts; i++ {
			d.text[i] = text.Draw(t, "text")
		}
		d.peer = netip.MustParseAddr("2001:db8::1")
		ring.record(d)
		rec, ok := ring.Decision("request-1")
		if !ok {
			t.Fatal("forgotten")
		}
		if _, err := proto.Marshal(rec); err != nil {
			t.Fatal(err)
		}
		for i, got := range map[int]string{
			textMethod: rec.Method, textHost: rec.Host, textPath: rec.Path, textRoute: rec.Route, textWorkspace: rec.Workspace,
			textReason: rec.Reason, textPolicy: rec.Policy, textRule: rec.Rule, textDetail: rec.Detail, textAuth: rec.AuthMethod,
			textSubject: rec.Subject, textClient: rec.Client, textIssuer: rec.Issuer, textUpstream: rec.Upstream, textTrace: rec.TraceId,
		} {
			want := d.text[i]
			if len(want) <= maxDecisionText && utf8.ValidString(want) && got != want {
				t.Fatalf("text %d: %q, want %q", i, got, want)
			}
			// A cut character and each byte that is none become three bytes.
			if !utf8.ValidString(got) || len(got) > 3*maxDecisionText {
				t.Fatalf("text %d: %q", i, got)
			}
		}
		if rec.Peer != "2001:db8::1" {
			t.Fatal(rec.Peer)
		}
	})
}

func TestDecisionsConcurrently(t *testing.T) {
	ring := NewDecisions("n1")
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 4000 {
				id := fmt.Sprintf("request-%d-%d", w, i)
				d := named(id)
				d.text[textDetail] = strings.Repeat(id, i%8)
				ring.record(d)
				if i%100 == 0 {
					if rec, ok := ring.Decision(id); ok && rec.Detail != d.text[textDetail] {
						t.Errorf("%s mixes with another: %q", id, rec.Detail)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestRecordAllocatesNothing(t *testing.T) {
	ring := NewDecisions("n1")
	d := named("request-1")
	for range decisionSlots {
		ring.record(d)
	}
	if n := testing.AllocsPerRun(1000, func() { ring.record(d) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// No query and no header value gets into the record: secrets travel there.
func TestDecisionsHoldNoSecret(t *testing.T) {
	r := newRig(t)
	r.apply(guarded)
	e := request("GET", "x/path?access_token=swordfish", "Authorization", "Bearer swordfish", "Cookie", "swordfish")
	r.do(e)
	if rec := r.decision(e.ID); rec.Path != "/path" || strings.Contains(rec.String(), "swordfish") {
		t.Error(rec)
	}
	e = request("GET", "x/a?access_token=swordfish")
	e.Identity = exchange.Identity{}
	r.apply(twoRoutes)
	r.do(e)
	if rec := r.decision(e.ID); rec.Route != "a" || rec.Reason != "upstream_unavailable" || !strings.Contains(rec.Detail, "127.0.0.1:1") || strings.Contains(rec.String(), "swordfish") {
		t.Error(rec)
	}
}
