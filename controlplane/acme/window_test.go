package acme

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const day = 24 * time.Hour

func suggests(start, end time.Time) *acme.RenewalInfo {
	info := &acme.RenewalInfo{}
	info.SuggestedWindow.Start, info.SuggestedWindow.End = start, end
	return info
}

// Whatever an authority suggests, and however far it dates certificates back, one is
// renewed well inside the life that was left when it came, and inside the window as
// far as that allows.
func TestRenewalIsInsideTheLife(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		issued := time.Unix(rapid.Int64Range(1<<20, 1<<32).Draw(t, "issued"), 0)
		length := time.Duration(rapid.Int64Range(int64(time.Second), int64(400*day)).Draw(t, "length"))
		back := time.Duration(rapid.Int64Range(-int64(length)/2, int64(100*day)).Draw(t, "dated back"))
		leaf := &x509.Certificate{NotBefore: issued.Add(-back), NotAfter: issued.Add(length)}
		var info *acme.RenewalInfo
		if rapid.Bool().Draw(t, "suggested") {
			at := rapid.Custom(func(t *rapid.T) time.Time {
				return issued.Add(time.Duration(rapid.Int64Range(-int64(length), 2*int64(length)).Draw(t, "at")))
			})
			info = suggests(at.Draw(t, "start"), at.Draw(t, "end"))
			info.SelectedTime = at.Draw(t, "selected by the answer")
		}
		got := &configv1.IssuedCertificate{IssuedAt: timestamppb.New(issued)}
		schedule(got, leaf, info)
		l := lifeOf(leaf, got.IssuedAt)
		at := got.RefreshAt.AsTime()
		if at.Before(l.earliest()) || at.After(l.latest()) || !at.After(issued) {
			t.Fatalf("%s into a life of %s", at.Sub(l.from), l.length())
		}
		w := got.Suggested
		if w == nil {
			if at.Before(l.from.Add(l.length()*3/5)) || at.After(l.from.Add(l.length()*2/3)) {
				t.Fatalf("%s into a life of %s without a suggestion", at.Sub(l.from), l.length())
			}
			return
		}
		if at.After(w.End.AsTime()) && !at.Equal(l.earliest()) || at.Before(w.Start.AsTime()) || w.End.AsTime().After(leaf.NotAfter) {
			t.Fatalf("%s is outside of %s", at, w)
		}
		// The same answer again changes nothing, and neither does one of no use.
		if again := reschedule(got, leaf, info); again != nil {
			t.Fatalf("written again: %v, was %v", again, got)
		}
	})
}

func TestDrawsAreSpreadOverTheWindow(t *testing.T) {
	now := time.Now()
	l := life{now, now.Add(90 * day)}
	w := l.window(suggests(now.Add(50*day), now.Add(60*day)))
	var hits [10]int
	for range 2000 {
		hits[l.draw(w).Sub(now.Add(50*day))/day]++
	}
	for i, n := range hits {
		// Expected 200 with a deviation of 13.
		if n < 100 || n > 300 {
			t.Errorf("day %d was drawn %d times of 2000", i, n)
		}
	}
}

func TestWindowsOfNoUse(t *testing.T) {
	now := time.Now()
	l := life{now, now.Add(90 * day)}
	at := func(d time.Duration) time.Time { return now.Add(d) }
	for name, c := range map[string]struct {
		start, end time.Time
		use        bool
	}{
		"none": {}, "no end": {start: at(day)}, "no start": {end: at(day)},
		"empty": {at(day), at(day), false}, "end before start": {at(2 * day), at(day), false},
		"before its life":        {at(-30 * day), at(-29 * day), false},
		"from far before on":     {at(-30 * day), at(60 * day), false},
		"year 1":                 {time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC), at(day), false},
		"after its life":         {at(91 * day), at(92 * day), false},
		"at its very end":        {at(85 * day), at(89 * day), false},
		"an hour ago":            {at(-time.Hour), at(-time.Hour + time.Second), true},
		"usual":                  {at(59 * day), at(61 * day), true},
		"over its end":           {at(70 * day), at(1000 * day), true},
		"to the end of all time": {at(70 * day), time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -12*3600)), true},
	} {
		w := l.window(suggests(c.start, c.end))
		if (w != nil) != c.use {
			t.Errorf("%s: %v", name, w)
		}
		if w != nil && (w.End.CheckValid() != nil || w.End.AsTime().After(l.to)) {
			t.Errorf("%s: ends at %v", name, w.End)
		}
	}
	if l.window(nil) != nil {
		t.Error("no answer is no window")
	}
}

func TestReschedule(t *testing.T) {
	now := time.Now()
	issuedAt := now.Add(-30 * day)
	leaf := &x509.Certificate{NotBefore: issuedAt, NotAfter: issuedAt.Add(90 * day)}
	planned := &configv1.IssuedCertificate{
		Certificate: "chain", PrivateKey: "key", IssuedAt: timestamppb.New(issuedAt), RefreshAt: timestamppb.New(now.Add(30 * day)),
		Suggested: &configv1.RenewalWindow{Start: timestamppb.New(now.Add(29 * day)), End: timestamppb.New(now.Add(31 * day))},
	}
	unsuggested := proto.CloneOf(planned)
	unsuggested.Suggested = nil
	fresh := proto.CloneOf(planned)
	fresh.IssuedAt = timestamppb.New(now.Add(-time.Minute))
	explained := suggests(now.Add(29*day), now.Add(31*day))
	explained.ExplanationURL = "https://ca.example/why"
	bad := suggests(now.Add(29*day), now.Add(31*day))
	bad.ExplanationURL = "javascript:alert(1)"
	for name, c := range map[string]struct {
		issued   *configv1.IssuedCertificate
		info     *acme.RenewalInfo
		from, to time.Duration // of now; nothing is written when both are 0
	}{
		"the same":                    {planned, suggests(now.Add(29*day), now.Add(31*day)), 0, 0},
		"wider, around what is drawn": {planned, suggests(now.Add(day), now.Add(40*day)), 0, 0},
		"of no use":                   {planned, suggests(now.Add(2*day), now.Add(day)), 0, 0},
		"later":                       {planned, suggests(now.Add(35*day), now.Add(36*day)), 35 * day, 36 * day},
		"earlier":                     {planned, suggests(now.Add(day), now.Add(2*day)), day, 2 * day},
		"at once: revocation":         {planned, suggests(now.Add(-time.Hour), now.Add(-time.Hour+time.Second)), -time.Hour, 0},
		"at once, but new":            {fresh, suggests(now.Add(-time.Hour), now.Add(-time.Hour+time.Second)), soonest - time.Minute - time.Second, soonest},
		"the first that there is":     {unsuggested, suggests(now.Add(29*day), now.Add(31*day)), 29 * day, 31 * day},
		"with a reason":               {planned, explained, 30 * day, 30 * day},
		"with a reason of no use":     {planned, bad, 0, 0},
	} {
		before := proto.CloneOf(c.issued)
		next := reschedule(c.issued, leaf, c.info)
		if !proto.Equal(before, c.issued) {
			t.Errorf("%s: changed its argument", name)
		}
		if c.from == 0 && c.to == 0 {
			if next != nil {
				t.Errorf("%s: wrote %v", name, next)
			}
			continue
		}
		if next == nil {
			t.Errorf("%s: nothing was written", name)
			continue
		}
		if in := next.RefreshAt.AsTime().Sub(now); in < c.from || in > c.to || next.Certificate != "chain" || next.PrivateKey != "key" {
			t.Errorf("%s: in %s, want %s to %s", name, in, c.from, c.to)
		}
		if next.Suggested.ExplanationUrl != c.info.ExplanationURL {
			t.Errorf("%s: explained by %q", name, next.Suggested.ExplanationUrl)
		}
	}
}

func TestExplanationIsAnAddressToShow(t *testing.T) {
	for raw, want := range map[string]string{
		"": "", "https://ca.example/why?x=1": "https://ca.example/why?x=1", "http://ca.example/": "http://ca.example/",
		"file:///etc/passwd": "", "javascript:alert(1)": "", "https://": "", "https://user:secret@ca.example/": "",
		"https://ca.example/\x1b[31m": "", "https://ca.example/a b": "https://ca.example/a%20b",
		"https://ca.example/" + strings.Repeat("x", maxExplanation): "",
	} {
		if got := explanation(raw); got != want {
			t.Errorf("%q: %q", raw, got)
		}
	}
}

func TestAskIn(t *testing.T) {
	now := time.Now()
	after := func(d time.Duration) *acme.RenewalInfo {
		at := now.Add(d)
		return &acme.RenewalInfo{RetryAfter: &at}
	}
	for name, c := range map[string]struct {
		info     *acme.RenewalInfo
		err      error
		usable   bool
		from, to time.Duration
	}{
		"as said":         {after(6 * time.Hour), nil, true, 6 * time.Hour, 6 * time.Hour},
		"at once":         {after(0), nil, true, minAsk, minAsk},
		"in the past":     {after(-1000 * day), nil, true, minAsk, minAsk},
		"next year":       {after(365 * day), nil, true, maxAsk, maxAsk},
		"not said":        {&acme.RenewalInfo{}, nil, true, lostAsk * 4 / 5, lostAsk * 6 / 5},
		"no answer":       {nil, nil, true, lostAsk * 4 / 5, lostAsk * 6 / 5},
		"no window":       {after(time.Minute), nil, false, lostAsk * 4 / 5, lostAsk * 6 / 5},
		"failed":          {after(time.Minute), errors.New("no"), false, lostAsk * 4 / 5, lostAsk * 6 / 5},
		"never suggested": {nil, fmt.Errorf("x: %w", acme.ErrUnsupported), false, maxAsk * 4 / 5, maxAsk * 6 / 5},
	} {
		if got := askIn(c.info, c.err, c.usable, now); got < c.from || got > c.to+time.Nanosecond {
			t.Errorf("%s: %s", name, got)
		}
	}
}
