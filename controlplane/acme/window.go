package acme

import (
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net/url"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	// minAsk and maxAsk bound the time between two questions about one certificate,
	// whatever the authority says (RFC 9773, 4.3.2).
	minAsk = time.Minute
	maxAsk = 24 * time.Hour
	// lostAsk is that time when there was no usable answer, or one that says nothing
	// of it (RFC 9773, 4.3.3).
	lostAsk = 6 * time.Hour
	// soonest is how long a new certificate is kept at least, or a tenth of its life
	// when that is shorter: an authority that always says "now" is not to be ordered
	// from for ever.
	soonest = 6 * time.Hour
	// stale is how far before a certificate's life a window may begin: one for "now"
	// may begin an hour ago, and clocks differ.
	stale = 24 * time.Hour
	// maxExplanation bounds the address of an explanation.
	maxExplanation = 512
)

// life is how long a certificate can be used, from when it came by our clock:
// authorities date certificates back, some by more than they are good for.
type life struct{ from, to time.Time }

func lifeOf(leaf *x509.Certificate, issued *timestamppb.Timestamp) life {
	if issued == nil {
		return life{leaf.NotBefore, leaf.NotAfter}
	}
	return life{issued.AsTime(), leaf.NotAfter}
}

// length is at most 292 years, which is what a Duration holds: not to be multiplied.
func (l life) length() time.Duration { return l.to.Sub(l.from) }

// earliest and latest bound when a certificate is ordered again by a suggestion.
func (l life) earliest() time.Time { return l.from.Add(min(l.length()/10, soonest)) }
func (l life) latest() time.Time   { return l.to.Add(-l.length() / 10) }

// share is when to order again where the authority suggests nothing: when two
// thirds of the life are over, up to a twentieth earlier so that what was issued
// together is not renewed together.
func (l life) share() time.Time {
	return l.from.Add(l.length() - l.length()/3 - rand.N(l.length()/20+1))
}

// draw picks a moment of a window, each as likely as any other (RFC 9773, 4.2). The
// past stands for now.
func (l life) draw(w *configv1.RenewalWindow) time.Time {
	from, to := w.Start.AsTime(), w.End.AsTime()
	if to.After(l.latest()) {
		to = l.latest()
	}
	at := from.Add(rand.N(max(to.Sub(from), 1)))
	if at.Before(l.earliest()) {
		return l.earliest()
	}
	return at
}

// window returns what the authority suggests, no later than the certificate's
// expiry; nil when that is of no use: it ends before it starts, lies far before the
// certificate's life, or leaves too little of it to try again.
func (l life) window(info *acme.RenewalInfo) *configv1.RenewalWindow {
	if info == nil || !info.HasWindow() {
		return nil
	}
	start, end := info.SuggestedWindow.Start, info.SuggestedWindow.End
	if !end.After(start) || start.Before(l.from.Add(-stale)) || !start.Before(l.latest()) {
		return nil
	}
	if end.After(l.to) {
		end = l.to
	}
	return &configv1.RenewalWindow{Start: timestamppb.New(start), End: timestamppb.New(end), ExplanationUrl: explanation(info.ExplanationURL)}
}

// explanation returns an address that an operator can be shown; empty when it is
// none.
func explanation(raw string) string {
	parsed, err := url.Parse(raw)
	if err != nil || parsed.Scheme != "https" && parsed.Scheme != "http" || parsed.Host == "" || parsed.User != nil {
		return ""
	}
	if text := parsed.String(); len(text) <= maxExplanation {
		return text
	}
	return ""
}

// schedule sets when a new certificate is ordered again.
func schedule(issued *configv1.IssuedCertificate, leaf *x509.Certificate, info *acme.RenewalInfo) {
	l := lifeOf(leaf, issued.IssuedAt)
	at := l.share()
	if issued.Suggested = l.window(info); issued.Suggested != nil {
		at = l.draw(issued.Suggested)
	}
	issued.RefreshAt = timestamppb.New(at)
}

// reschedule returns what is to be written after another answer; nil when what is
// written stands. A moment that was drawn is kept for as long as the window holds
// it: to draw again at every question would favour the early ones.
func reschedule(issued *configv1.IssuedCertificate, leaf *x509.Certificate, info *acme.RenewalInfo) *configv1.IssuedCertificate {
	l := lifeOf(leaf, issued.IssuedAt)
	w := l.window(info)
	if w == nil {
		return nil
	}
	at := issued.RefreshAt.AsTime()
	if issued.Suggested == nil || at.Before(w.Start.AsTime()) || at.After(w.End.AsTime()) {
		at = l.draw(w)
	}
	if issued.Suggested != nil && issued.Suggested.ExplanationUrl == w.ExplanationUrl && at.Equal(issued.RefreshAt.AsTime()) {
		return nil
	}
	next := proto.CloneOf(issued)
	next.Suggested, next.RefreshAt = w, timestamppb.New(at)
	return next
}

// askIn returns how long the authority is left alone about a certificate after an
// answer: as long as it says, within bounds. usable says whether the answer held a
// window.
func askIn(info *acme.RenewalInfo, err error, usable bool, now time.Time) time.Duration {
	switch {
	case errors.Is(err, acme.ErrUnsupported):
		return jitter(maxAsk)
	case err != nil || !usable || info == nil || info.RetryAfter == nil:
		return jitter(lostAsk)
	}
	return min(max(info.RetryAfter.Sub(now), minAsk), maxAsk)
}
