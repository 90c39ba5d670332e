package listen

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Settings are what the sockets speak: compiled from one configuration, immutable
// but for ticket keys.
type Settings struct {
	listeners map[string]*spoken
	// certificates by name, for the next Settings.
	certificates map[string]*shown
	// challenges are the answers to ACME authorities, by token.
	challenges map[string]string
}

// spoken is what is spoken on the sockets of one name.
type spoken struct {
	// tls is nil for clear text.
	tls *tls.Config
	// http3: HTTP/3 is offered too.
	http3 bool
	// verifies: clients show certificates.
	verifies bool
	store    *store
	// missing says which certificates there are none of yet, and why.
	missing []string
}

// Compile makes Settings of a configuration. before, which may be nil, lends what
// has not changed. An error is config.Problems: nothing of it is to be used.
func (l *Listeners) Compile(c config.Checked, before *Settings) (*Settings, error) {
	s := &Settings{listeners: map[string]*spoken{}, certificates: map[string]*shown{}, challenges: map[string]string{}}
	var problems config.Problems
	gateway, ok := c.Get(gatewayKey())
	for i, listener := range gateway.GetGateway().GetListeners() {
		one, err := s.listener(c, before, listener, l.protocols())
		if err != nil {
			problems = append(problems, &config.Problem{
				Key: gatewayKey(), Path: fmt.Sprintf("spec.listeners[%d]", i), Reason: err.Error(),
			})
			continue
		}
		s.listeners[listener.GetName()] = one
	}
	if len(problems) > 0 {
		return nil, problems
	}
	if _, listed := s.listeners[HTTP]; !listed || !ok {
		s.listeners[HTTP] = &spoken{}
	}
	for _, r := range c.OfKind(config.KindIssuedCertificate) {
		for _, challenge := range r.GetIssuedCertificate().GetChallenges() {
			s.challenges[challenge.GetToken()] = challenge.GetKeyAuthorization()
		}
	}
	return s, nil
}

func gatewayKey() config.Key {
	return config.Key{Kind: config.KindGateway, Workspace: config.DefaultWorkspace, Name: "default"}
}

func (s *Settings) listener(c config.Checked, before *Settings, l *configv1.Listener, protocols []string) (*spoken, error) {
	one := &spoken{http3: l.GetHttp3()}
	t := l.GetTls()
	if t == nil {
		return one, nil
	}
	var all []*shown
	for _, name := range t.GetCertificates() {
		switch cert, err := s.certificate(c, before, name); {
		case errors.Is(err, errNotIssued):
			one.missing = append(one.missing, fmt.Sprintf("Certificate %q %v", name, err))
		case err != nil:
			return nil, fmt.Errorf("the Certificate %q: %w", name, err)
		default:
			all = append(all, cert)
		}
	}
	one.store = newStore(all)
	one.verifies = t.GetClientCertificates() != nil
	build := identity.Listener{
		Certificate: one.store.choose, Protocols: protocols,
		ClientCA: t.GetClientCertificates().GetCa(), ClientsOptional: t.GetClientCertificates().GetOptional(),
		MinVersion: tls.VersionTLS12,
	}
	if one.verifies && build.ClientCA == "" {
		return nil, errors.New("tls.clientCertificates.ca is missing")
	}
	if t.GetMinVersion() == configv1.TLSVersion_TLS_VERSION_1_3 {
		build.MinVersion = tls.VersionTLS13
	}
	var err error
	if one.tls, err = build.Server(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return one, nil
}

func (s *Settings) certificate(c config.Checked, before *Settings, name string) (*shown, error) {
	if have := s.certificates[name]; have != nil {
		return have, nil
	}
	declared, ok := c.Get(config.Key{Kind: config.KindCertificate, Workspace: config.DefaultWorkspace, Name: name})
	if !ok {
		return nil, errors.New("does not exist")
	}
	issued, _ := c.Get(config.Key{Kind: config.KindIssuedCertificate, Workspace: config.DefaultWorkspace, Name: name})
	if before != nil {
		if have := before.certificates[name]; have != nil && have.same(declared.GetCertificate(), issued.GetIssuedCertificate()) {
			s.certificates[name] = have
			return have, nil
		}
	}
	made, err := show(declared.GetCertificate(), issued.GetIssuedCertificate())
	if err != nil {
		return nil, err
	}
	s.certificates[name] = made
	return made, nil
}

// problem says why a socket of the name is not served at a time; "" when it is.
func (s *Settings) problem(name string, now time.Time) string {
	if s == nil {
		if name == HTTP {
			return ""
		}
		return "no configuration yet"
	}
	one := s.listeners[name]
	switch {
	case one == nil:
		return fmt.Sprintf("the Gateway has no listener %q", name)
	case one.tls == nil:
		return ""
	case len(one.store.all) == 0:
		return strings.Join(one.missing, "; ")
	}
	for _, c := range one.store.all {
		if c.valid(now) {
			return ""
		}
	}
	return "every certificate has expired or is not valid yet"
}

// setTicketKeys gives the keys to every listener.
func (s *Settings) setTicketKeys(keys [][32]byte) {
	if s == nil || len(keys) == 0 {
		return
	}
	for _, one := range s.listeners {
		if one.tls != nil {
			one.tls.SetSessionTicketKeys(keys)
		}
	}
}
