package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"embed"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"text/template"
	"time"
)

// setup is a way to run a gateway, for one or more scenarios.
type setup string

const (
	setupPlain  setup = "plain"
	setupKilo   setup = "routes-1k"
	setupMyriad setup = "routes-10k"
	setupJWT    setup = "jwt"
	// setupLimit adds a rate limit that is never reached.
	setupLimit setup = "jwt-limit"
	// setupFull adds all that Portcullis has: bounded staleness of revocations,
	// scopes and a cluster-wide limit.
	setupFull setup = "jwt-full"
	setupTLS  setup = "tls"
)

func (s setup) authenticates() bool { return s == setupJWT || s == setupLimit || s == setupFull }

// routes is how many routes a set-up has.
func (s setup) routes() int {
	switch s {
	case setupKilo:
		return 1_000
	case setupMyriad:
		return 10_000
	}
	return 1
}

// prefix is under which path a route answers: the set-up's own, or the one of
// many.
func (s setup) prefix(i int) string {
	if s.routes() > 1 {
		return fmt.Sprintf("/svc/%d", i)
	}
	return "/" + string(s)
}

// peer is a gateway that can be measured.
type peer struct {
	name string
	// setups that it can do; what it cannot is no row of its.
	setups []setup
	// missing says what is not installed and how to get it; it may fetch and build.
	missing func(context.Context, *rig) error
	// start runs it in a set-up, listening on address.
	start func(ctx context.Context, r *rig, s setup, address string) (*gateway, error)
}

func (p peer) can(s setup) bool {
	for _, each := range p.setups {
		if each == s {
			return true
		}
	}
	return false
}

// gateway is a running peer.
type gateway struct {
	*process
	// address is where it serves the set-up's requests.
	address string
	// debug is where Portcullis serves profiles.
	debug string
	// cluster is what a node of Portcullis follows.
	cluster *portcullis
}

// twin ends the name of a second instance, which is measured beside the first.
const twin = "-twin"

func peers() []peer {
	return []peer{
		{"portcullis", []setup{setupPlain, setupKilo, setupMyriad, setupJWT, setupLimit, setupFull, setupTLS}, builtPortcullis, startPortcullis("portcullis")},
		{"portcullis" + twin, []setup{setupPlain}, builtPortcullis, startPortcullis("portcullis" + twin)},
		{"nginx", []setup{setupPlain, setupKilo, setupMyriad, setupTLS}, needs("nginx", "nginx"), startNginx("nginx")},
		{"nginx" + twin, []setup{setupPlain}, needs("nginx", "nginx"), startNginx("nginx" + twin)},
		{"haproxy", []setup{setupPlain, setupKilo, setupMyriad, setupJWT, setupLimit, setupTLS}, needs("haproxy", "haproxy"), startHAProxy},
		{"nginx-lua", []setup{setupJWT, setupLimit}, needsLua, startNginxLua},
		{"envoy", []setup{setupPlain, setupKilo, setupMyriad, setupJWT, setupLimit, setupFull, setupTLS}, fetchedEnvoy, startEnvoy},
		{"net-http", []setup{setupPlain, setupTLS}, builtGoPeers, startGoPeer("net-http")},
		{"caddy", []setup{setupPlain, setupKilo, setupTLS}, builtGoPeers, startGoPeer("caddy")},
		{"skipper", []setup{setupPlain, setupKilo, setupMyriad, setupTLS}, builtGoPeers, startGoPeer("skipper")},
	}
}

// conf holds the peers' configurations: templates over a view.
//
//go:embed conf
var conf embed.FS

// view is what the templates know.
type view struct {
	Listen, Host, Port           string
	Upstream, UpstreamHost       string
	UpstreamPort                 string
	Dir                          string
	Prefix                       string
	Routes                       []string
	JWT, Limit, Full, TLS        bool
	Certificate, Key, Both       string
	Public, JWKS                 string
	Issuer, Audience, Scope, Kid string
	Lua, NDK                     string
	Root                         bool
}

// configure writes a peer's configuration into a folder of its own and returns
// its name.
func (r *rig) configure(name, source string, s setup, address string, change func(*view)) (file, dir string, err error) {
	dir = filepath.Join(r.dir, name+"-"+string(s))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	v := view{
		Listen: address, Upstream: r.upstream.address, Dir: dir, Prefix: s.prefix(0), JWT: s.authenticates(), Limit: s == setupLimit || s == setupFull,
		Full: s == setupFull, TLS: s == setupTLS, Certificate: r.tokens.certificate, Key: r.tokens.key, Both: r.tokens.both, Public: r.tokens.publicFile, JWKS: r.tokens.jwksFile,
		Issuer: issuerURL, Audience: audience, Scope: scope, Kid: keyID, Root: os.Geteuid() == 0,
	}
	for i := range s.routes() {
		v.Routes = append(v.Routes, s.prefix(i))
	}
	if v.Host, v.Port, err = net.SplitHostPort(address); err == nil {
		v.UpstreamHost, v.UpstreamPort, err = net.SplitHostPort(v.Upstream)
	}
	if err != nil {
		return "", "", err
	}
	if change != nil {
		change(&v)
	}
	parsed, err := template.ParseFS(conf, "conf/"+source)
	if err != nil {
		return "", "", err
	}
	var text bytes.Buffer
	if err := parsed.Execute(&text, v); err != nil {
		return "", "", err
	}
	file = filepath.Join(dir, source)
	return file, dir, os.WriteFile(file, text.Bytes(), 0o600)
}

// run launches a configured gateway and waits until it serves.
func (r *rig) run(ctx context.Context, s setup, address string, c command) (*gateway, error) {
	c.cpus = r.options.proxyCPUs
	p, err := launch(c)
	if err != nil {
		return nil, err
	}
	g := &gateway{process: p, address: address}
	if err := r.proves(ctx, g, s); err != nil {
		p.stop()
		return nil, err
	}
	return g, nil
}

// startLimit bounds how long a gateway may take until it serves.
const startLimit = 30 * time.Second

// proves waits until the gateway serves the set-up, and sees to it that it
// refuses whom it must: one that does not verify would win every row.
func (r *rig) proves(ctx context.Context, g *gateway, s setup) error {
	token := ""
	if s.authenticates() {
		token = r.tokens.signed[0]
	}
	path := s.prefix(s.routes()-1) + smallPath
	if err := g.until(ctx, startLimit, func() error { return probe(ctx, g.address, path, s, token, http.StatusOK, smallSize) }); err != nil {
		return err
	}
	if !s.authenticates() {
		return nil
	}
	for what, token := range map[string]string{"no token": "", "a forged token": r.tokens.forged} {
		for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
			err := probe(ctx, g.address, path, s, token, status, -1)
			if err == nil {
				break
			}
			if status == http.StatusForbidden {
				return fmt.Errorf("%s with %s: %w", g.command.name, what, err)
			}
		}
	}
	return nil
}

// probe sends one request on a connection of its own.
func probe(ctx context.Context, address, path string, s setup, token string, status, size int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true}
	scheme := "http"
	if s == setupTLS {
		scheme, transport.ForceAttemptHTTP2 = "https", true
		// The certificate is self-signed and made for this run.
		transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+path, nil)
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	n, err := io.Copy(io.Discard, bufio.NewReader(resp.Body))
	switch {
	case err != nil:
		return err
	case resp.StatusCode != status:
		return fmt.Errorf("%s answers %d instead of %d", path, resp.StatusCode, status)
	case size >= 0 && n != int64(size):
		return fmt.Errorf("%s answers with %d bytes instead of %d", path, n, size)
	case s == setupTLS && resp.ProtoMajor != 2:
		return fmt.Errorf("%s answers in %s", path, resp.Proto)
	}
	return nil
}

// freeAddress returns a loopback address that nobody listens on just now.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}
