package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// named is a certificate that an authority can be asked about.
func named(t *testing.T, from, to time.Time) (string, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(0x80ff), NotBefore: from, NotAfter: to, AuthorityKeyId: []byte{1, 2, 3}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	chain := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return chain, leafOf(chain)
}

// oracle is an authority that answers one question in the worst ways.
type oracle struct {
	host      string
	answer    func(*http.Request) (*http.Response, error)
	elsewhere bool // renewalInfo is of another host
	asked     int
}

func (o *oracle) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path == "/directory" {
		info := "https://" + o.host + "/info"
		if o.elsewhere {
			info = "https://elsewhere.example/info"
		}
		return said(200, fmt.Sprintf(`{"newNonce": "https://%[1]s/n", "newAccount": "https://%[1]s/a", "newOrder": "https://%[1]s/o", "renewalInfo": %[2]q}`, o.host, info), nil), nil
	}
	o.asked++
	return o.answer(r)
}

func said(status int, body string, header map[string]string) *http.Response {
	resp := &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body))}
	for name, value := range header {
		resp.Header.Set(name, value)
	}
	return resp
}

// No answer, however wrong, moves what is planned, keeps the question for longer than
// its bound, or has it repeated sooner than a minute later.
func TestHostileAnswersChangeNothing(t *testing.T) {
	window := func(start, end string) string {
		return fmt.Sprintf(`{"suggestedWindow": {"start": %q, "end": %q}}`, start, end)
	}
	// The bubble's clock starts at 2000-01-01.
	const good, goodEnd = "2000-02-20T00:00:00Z", "2000-02-22T00:00:00Z"
	for name, c := range map[string]struct {
		status    int
		body      string
		header    map[string]string
		err       error
		hang      bool
		elsewhere bool
		moves     bool
	}{
		"usable":                   {status: 200, body: window(good, goodEnd), header: map[string]string{"Retry-After": "21600"}, moves: true},
		"usable, never again":      {status: 200, body: window(good, goodEnd), header: map[string]string{"Retry-After": "999999999"}, moves: true},
		"usable, again and again":  {status: 200, body: window(good, goodEnd), header: map[string]string{"Retry-After": "0"}, moves: true},
		"usable, again long ago":   {status: 200, body: window(good, goodEnd), header: map[string]string{"Retry-After": "Mon, 01 Jan 1990 00:00:00 GMT"}, moves: true},
		"usable, again sometime":   {status: 200, body: window(good, goodEnd), header: map[string]string{"Retry-After": "soon"}, moves: true},
		"usable, overflowing":      {status: 200, body: window(good, goodEnd), header: map[string]string{"Retry-After": "9223372036854775807"}, moves: true},
		"with what is ours to say": {status: 200, body: `{"suggestedWindow": {"start": "2000-02-20T00:00:00Z", "end": "2000-02-22T00:00:00Z"}, "_selectedTime": "2000-01-01T00:00:00Z", "_retryAfter": "9999-01-01T00:00:00Z"}`, moves: true},
		"end before start":         {status: 200, body: window(goodEnd, good)},
		"no window":                {status: 200, body: `{}`},
		"no object":                {status: 200, body: `[1]`},
		"no JSON":                  {status: 200, body: `<html>`},
		"another type":             {status: 200, body: `<html>`, header: map[string]string{"Content-Type": "text/html"}},
		"year 1":                   {status: 200, body: window("0001-01-02T00:00:00Z", "0001-01-03T00:00:00Z")},
		"year 0":                   {status: 200, body: window("0000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59")},
		"before 1970":              {status: 200, body: strings.Replace(window("1950-01-01T00:00:00Z", "1960-01-01T00:00:00Z"), "{", `{"_selectedTime": "2000-01-01T00:00:00Z", `, 1)},
		"after it has expired":     {status: 200, body: window("2001-01-01T00:00:00Z", "2001-01-02T00:00:00Z")},
		"endless":                  {status: 200, body: `{"x": "` + strings.Repeat("x", maxAnswer) + `"}`},
		"not found":                {status: 404, body: `{}`},
		"too many":                 {status: 429, body: `{"type": "urn:ietf:params:acme:error:rateLimited"}`, header: map[string]string{"Content-Type": "application/problem+json", "Retry-After": "1"}},
		"broken":                   {status: 500, body: `{}`, header: map[string]string{"Content-Type": "application/problem+json"}},
		"elsewhere":                {status: 302, header: map[string]string{"Location": "http://169.254.169.254/"}},
		"another host":             {elsewhere: true},
		"refused":                  {err: errors.New("connection refused")},
		"silence":                  {hang: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host := strings.NewReplacer(" ", "-", ",", "").Replace(strings.ToLower(name)) + ".example"
				o := &oracle{host: host, elsewhere: c.elsewhere, answer: func(r *http.Request) (*http.Response, error) {
					if c.hang {
						<-r.Context().Done()
						return nil, r.Context().Err()
					}
					if c.err != nil {
						return nil, c.err
					}
					return said(c.status, c.body, c.header), nil
				}}
				s := newSilent(t)
				client := &acme.Client{Directory: "https://" + host + "/directory", HTTPClient: &http.Client{
					Transport: &guard{base: o, host: host}, Timeout: requestTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
				}}
				began := time.Now()
				if err := s.keeper.askAt(t.Context(), client, s.source, s.leaf, s.keeper.cfg.Log); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > askTimeout {
					t.Errorf("took %s", took)
				}
				if o.asked > 9 || c.elsewhere != (o.asked == 0) {
					t.Errorf("asked %d times", o.asked)
				}
				if c.moves != (s.written != nil) {
					t.Errorf("written: %v", s.written)
				}
				if s.written != nil {
					if at := s.written.RefreshAt.AsTime().Format(time.RFC3339); at < good || at > goodEnd {
						t.Errorf("planned for %s", at)
					}
				}
				item, err := s.keeper.cfg.Locks.Get(t.Context(), "renewal/shop/site")
				if err != nil {
					t.Fatal(err)
				}
				var next appointment
				if err := json.Unmarshal(item.Value, &next); err != nil {
					t.Fatal(err)
				}
				// What moves the plan has a revision written: that cannot be had every minute.
				if wait := time.Until(next.At); wait < minAsk || c.moves && wait < askAgain || wait > maxAsk || next.Certificate != "AQID.AID_" {
					t.Errorf("asked again in %s about %s", wait, next.Certificate)
				}
			})
		})
	}
}

// silent is a keeper of one certificate that is planned for two months on.
type silent struct {
	keeper  *Keeper
	source  Source
	leaf    *x509.Certificate
	written *configv1.IssuedCertificate
	fail    error
}

func newSilent(t *testing.T) *silent {
	items := store.NewMemory()
	t.Cleanup(func() { _ = items.Close() })
	s := &silent{}
	now := time.Now()
	chain, leaf := named(t, now.Add(-time.Hour), now.Add(90*day))
	spec := &configv1.ACME{Hostnames: []string{"a.example"}, TermsAgreed: true}
	s.leaf = leaf
	s.source = Source{Key: key, Certificate: &configv1.Certificate{Acme: spec}, Issued: &configv1.IssuedCertificate{
		Certificate: chain, IssuedAt: timestamppb.New(now), RefreshAt: timestamppb.New(now.Add(59 * day)), Ordered: proto.CloneOf(spec),
	}}
	s.keeper = New(Config{Locks: items.Items("locks"), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Write: func(_ context.Context, _ Source, issued *configv1.IssuedCertificate, _ string) (config.Version, bool, error) {
			if s.fail != nil {
				return config.Version{}, false, s.fail
			}
			s.written = issued
			return config.Version{}, true, nil
		}})
	return s
}

// What could not be written is asked for again before long, and not at once.
func TestAnAnswerThatIsNotWrittenIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSilent(t)
		s.fail = store.ErrUnknown
		o := &oracle{host: "unwritten.example", answer: func(*http.Request) (*http.Response, error) {
			return said(200, `{"suggestedWindow": {"start": "1999-12-31T23:00:00Z", "end": "1999-12-31T23:30:00Z"}}`, nil), nil
		}}
		client := &acme.Client{Directory: "https://unwritten.example/directory", HTTPClient: &http.Client{Transport: o}}
		if err := s.keeper.askAt(t.Context(), client, s.source, s.leaf, s.keeper.cfg.Log); !errors.Is(err, store.ErrUnknown) {
			t.Errorf("%v", err)
		}
		if at, err := s.keeper.appointed(t.Context(), s.source); err != nil || time.Until(at) != askAgain {
			t.Errorf("asked again in %s, %v", time.Until(at), err)
		}
	})
}

// Of what nobody knows when it was asked about, the questions are spread; a replica
// that comes later keeps to what is appointed, for the certificate that there is.
func TestFirstQuestionsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSilent(t)
		if err := s.keeper.ask(t.Context(), s.source, s.keeper.cfg.Log); err != nil {
			t.Fatal(err)
		}
		at, err := s.keeper.appointed(t.Context(), s.source)
		if wait := time.Until(at); err != nil || wait < minAsk || wait > minAsk+spread {
			t.Errorf("asked in %s, %v", wait, err)
		}
		other := New(Config{Locks: s.keeper.cfg.Locks})
		if wait := other.untilAsk(s.source, time.Now()); wait != 0 {
			t.Errorf("one that knows nothing looks in %s", wait)
		}
		if settled, err := other.settled(t.Context(), s.source); !settled || err != nil {
			t.Errorf("settled %v, %v", settled, err)
		}
		if wait := other.untilAsk(s.source, time.Now()); wait != time.Until(at) {
			t.Errorf("asks in %s, want %s", wait, time.Until(at))
		}
		// It is of this certificate alone.
		renewed := s.source
		renewed.Issued = proto.CloneOf(s.source.Issued)
		renewed.Issued.Certificate, _ = selfSigned(t, time.Now(), time.Now().Add(day))
		if settled, err := other.settled(t.Context(), renewed); settled || err != nil {
			t.Errorf("settled %v, %v", settled, err)
		}
		// Nothing is asked about what is due already, or not there.
		renewed.Issued.Failures = 1
		if wait := other.untilAsk(renewed, time.Now()); wait != idle {
			t.Errorf("asks in %s about what has failed", wait)
		}
		time.Sleep(time.Until(at))
		if settled, err := other.settled(t.Context(), s.source); settled || err != nil {
			t.Errorf("settled %v, %v", settled, err)
		}
	})
}

// What the store holds may be of another version, or of a clock that was wrong.
func TestAppointmentsAreNotTrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSilent(t)
		for value, want := range map[string]time.Duration{
			`{"certificate": "AQID.AID_", "at": "2999-01-01T00:00:00Z"}`: 2 * maxAsk,
			`{"certificate": "AQID.AID_", "at": "2000-01-01T01:00:00Z"}`: time.Hour,
			`{"certificate": "", "at": "2000-01-01T01:00:00Z"}`:          0,
			`{"certificate": "AQID.xx", "at": "2000-01-01T01:00:00Z"}`:   0,
			`x`: 0, `{}`: 0, `null`: 0,
		} {
			if _, err := s.keeper.cfg.Locks.Put(t.Context(), "renewal/shop/site", []byte(value), store.Write{At: store.Overwrite}); err != nil {
				t.Fatal(err)
			}
			at, err := s.keeper.appointed(t.Context(), s.source)
			if err != nil || want == 0 && !at.IsZero() || want > 0 && time.Until(at) != want {
				t.Errorf("%s: %s, %v", value, at, err)
			}
		}
	})
}
