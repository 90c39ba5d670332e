package acme

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mholt/acmez/v3/acme"

	"portcullis.dev/portcullis/controlplane/outbound"
	"portcullis.dev/portcullis/pkg/identity"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	// letsEncrypt is the directory of who leaves it out.
	letsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

	requestTimeout = 30 * time.Second
	// maxAnswer bounds one answer; chains are the largest.
	maxAnswer = 256 << 10
	// maxRequests bounds the requests of one order: an authority that names ever
	// more URLs does not keep us for ever.
	maxRequests = 1000
	// maxRead bounds their answers together: the library gathers chains from as many
	// answers as they are said to go on in.
	maxRead = 8 << 20
	// maxProblem bounds a problem's text.
	maxProblem = 512
)

func directoryOf(spec *configv1.ACME) string {
	if spec.Directory == "" {
		return letsEncrypt
	}
	return spec.Directory
}

// connect prepares the protocol's client for one order or question.
func (k *Keeper) connect(spec *configv1.ACME) (client *acme.Client, closeIdle func(), err error) {
	directory, err := url.Parse(directoryOf(spec))
	if err != nil || directory.Scheme != "https" || directory.Host == "" || directory.User != nil || directory.Fragment != "" {
		return nil, nil, fmt.Errorf("directory %q: expected https://host/path without user and fragment", directoryOf(spec))
	}
	secure, err := identity.Upstream(spec.Ca, "", "", "")
	if err != nil {
		return nil, nil, err
	}
	transport := &http.Transport{
		DialContext: outbound.Dial(k.cfg.AllowLoopback, requestTimeout), TLSClientConfig: secure, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: requestTimeout, MaxResponseHeaderBytes: 64 << 10, MaxIdleConns: 2,
	}
	// The library remembers directories by their URL, for the whole process: what one
	// workspace's authorities have vouched for must not be taken for another's.
	trust := sha256.Sum256([]byte(spec.Ca))
	directory.Fragment = hex.EncodeToString(trust[:8])
	guard := &guard{base: transport, host: hostOf(directory)}
	return &acme.Client{
		Directory: directory.String(), UserAgent: "portcullis", PollInterval: 300 * time.Millisecond, PollTimeout: orderTimeout,
		HTTPClient: &http.Client{Transport: guard, Timeout: requestTimeout, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
	}, transport.CloseIdleConnections, nil
}

// guard keeps an order's requests to the directory's host and to bounds.
type guard struct {
	base http.RoundTripper
	host string
	made atomic.Int64
	read atomic.Int64 // of answers, in bytes
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" || hostOf(req.URL) != g.host {
		return nil, fmt.Errorf("the authority names %s://%s: only https on the directory's host, %s, is asked", req.URL.Scheme, req.URL.Host, g.host)
	}
	if g.made.Add(1) > maxRequests {
		return nil, fmt.Errorf("the order takes more than %d requests", maxRequests)
	}
	resp, err := g.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = &bounded{ReadCloser: resp.Body, left: maxAnswer, all: &g.read}
	return resp, nil
}

func hostOf(u *url.URL) string {
	return strings.ToLower(strings.TrimSuffix(u.Host, ":443"))
}

// bounded fails where an answer, or all of them, go on beyond their bound.
type bounded struct {
	io.ReadCloser
	left int
	all  *atomic.Int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left+1)])
	if b.left -= n; b.left < 0 {
		return 0, fmt.Errorf("the answer is larger than %d KiB", maxAnswer>>10)
	}
	if b.all.Add(int64(n)) > maxRead {
		return 0, fmt.Errorf("the order's answers are larger than %d MiB", maxRead>>20)
	}
	return n, err
}

// limited says whether an authority has refused because it was asked too often
// (RFC 8555, 6.6).
func limited(err error) bool {
	var problem acme.Problem
	return errors.As(err, &problem) && problem.Type == acme.ProblemTypeRateLimited
}

// explain is an error as an operator reads it, on one line and of bounded length:
// much of it may be what a server has said.
func explain(err error) string {
	text := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, err.Error())
	text = strings.ReplaceAll(text, acme.ProblemTypeNamespace, "")
	text = strings.Join(strings.Fields(text), " ")
	if len(text) <= maxProblem {
		return text
	}
	cut := maxProblem - len("...")
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "..."
}
