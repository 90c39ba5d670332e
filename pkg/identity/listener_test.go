package identity

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/pkg/identity/certtest"
)

// listener is a listener's configuration that shows one certificate.
func listener(t *testing.T, pair certtest.Pair, adjust func(*Listener)) *tls.Config {
	t.Helper()
	cert := pair.TLS(t)
	l := Listener{
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		Protocols:   []string{"http/1.1"},
	}
	if adjust != nil {
		adjust(&l)
	}
	c, err := l.Server()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ticketKey(t *testing.T) (key [32]byte) {
	t.Helper()
	if _, err := rand.Read(key[:]); err != nil {
		t.Fatal(err)
	}
	return key
}

func TestListenerVersions(t *testing.T) {
	ca := certtest.New(t, "ca")
	pair := ca.Issue(t, certtest.Spec{Hosts: []string{"a.example"}})
	for name, c := range map[string]struct {
		min    uint16
		client *tls.Config
		works  bool
	}{
		"1.3":                    {0, &tls.Config{}, true},
		"1.2":                    {0, &tls.Config{MaxVersion: tls.VersionTLS12}, true},
		"1.1":                    {0, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
		"1.2 where 1.3 is asked": {tls.VersionTLS13, &tls.Config{MaxVersion: tls.VersionTLS12}, false},
		"1.2 with CBC":           {0, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, false},
		"an unknown protocol":    {0, &tls.Config{NextProtos: []string{"spdy/3"}}, false},
		"one of two protocols":   {0, &tls.Config{NextProtos: []string{"h2", "http/1.1"}}, true},
		"classic curves only":    {0, &tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP256}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			server := listener(t, pair, func(l *Listener) { l.MinVersion = c.min })
			client := c.client.Clone()
			client.RootCAs, client.ServerName = ca.Pool(), "a.example"
			cs, serverErr, clientErr := shake(t, server, client)
			if works := serverErr == nil && clientErr == nil; works != c.works {
				t.Errorf("server: %v, client: %v", serverErr, clientErr)
			}
			if c.works && name == "1.3" && cs.CurveID != tls.X25519MLKEM768 {
				t.Errorf("key exchange %v", cs.CurveID)
			}
		})
	}
}

func TestListenerWithoutCertificate(t *testing.T) {
	if _, err := (Listener{}).Server(); err == nil {
		t.Error("a listener that could show nothing")
	}
	c, err := Listener{Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }}.Server()
	if err != nil {
		t.Fatal(err)
	}
	_, _, clientErr := shake(t, c, &tls.Config{ServerName: "a.example"})
	var alert tls.AlertError
	if !errors.As(clientErr, &alert) && (clientErr == nil || !strings.Contains(clientErr.Error(), "unrecognized name")) {
		t.Errorf("%v; want the alert unrecognized_name", clientErr)
	}
	for _, ca := range []string{"x", certtest.New(t, "ca").Issue(t, certtest.Spec{}).CertPEM} {
		l := Listener{Certificate: c.GetCertificate, ClientCA: ca}
		if _, err := l.Server(); err == nil {
			t.Errorf("accepts %.20q as an authority", ca)
		}
	}
}

// TestTickets: what one node issued another resumes, as long as it has the key.
func TestTickets(t *testing.T) {
	ca := certtest.New(t, "ca")
	pair := ca.Issue(t, certtest.Spec{Hosts: []string{"a.example"}})
	first, second, third := ticketKey(t), ticketKey(t), ticketKey(t)
	node := func(keys ...[32]byte) *tls.Config {
		return listener(t, pair, func(l *Listener) { l.TicketKeys = keys })
	}
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			client := &tls.Config{RootCAs: ca.Pool(), ServerName: "a.example", MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
			resumed := func(server *tls.Config) bool {
				t.Helper()
				cs, serverErr, clientErr := shake(t, server, client)
				if serverErr != nil || clientErr != nil {
					t.Fatal(serverErr, clientErr)
				}
				return cs.DidResume
			}
			a, b := node(first), node(first)
			if resumed(a) {
				t.Error("resumed what there was not")
			}
			if !resumed(b) {
				t.Error("another node does not resume")
			}
			// Rotation: the old key still opens, the new one seals.
			b.SetSessionTicketKeys([][32]byte{second, first})
			if !resumed(b) {
				t.Error("a rotation lost the sessions")
			}
			a.SetSessionTicketKeys([][32]byte{third, second})
			if version == tls.VersionTLS13 && !resumed(a) {
				t.Error("the ticket was not sealed with the newest key")
			}
			if c := node(ticketKey(t)); resumed(c) {
				t.Error("resumed without the key")
			}
		})
	}
}

// TestTicketsAndTrust: a ticket holds the verdict on a client's certificate, and
// does not carry it to where the verdict would be another.
func TestTicketsAndTrust(t *testing.T) {
	ca, clients, others := certtest.New(t, "ca"), certtest.New(t, "clients"), certtest.New(t, "others")
	pair := ca.Issue(t, certtest.Spec{Hosts: []string{"a.example"}})
	own := clients.Issue(t, certtest.Spec{Name: "own", Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	key := ticketKey(t)
	node := func(authorities string, optional bool) *tls.Config {
		return listener(t, pair, func(l *Listener) {
			l.TicketKeys, l.ClientCA, l.ClientsOptional = [][32]byte{key}, authorities, optional
		})
	}
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			dial := func(server *tls.Config, cache tls.ClientSessionCache, cert ...tls.Certificate) (tls.ConnectionState, bool) {
				config := &tls.Config{RootCAs: ca.Pool(), ServerName: "a.example", MaxVersion: version, ClientSessionCache: cache}
				if len(cert) > 0 { // shown whatever the server says that it trusts
					config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert[0], nil }
				}
				cs, serverErr, clientErr := shake(t, server, config)
				return cs, serverErr == nil && clientErr == nil
			}
			cache := tls.NewLRUClientSessionCache(4)
			if _, ok := dial(node(clients.CertPEM, false), cache, own.TLS(t)); !ok {
				t.Fatal("the client is refused")
			}
			cs, ok := dial(node(clients.CertPEM, false), cache, own.TLS(t))
			if !ok || !cs.DidResume || len(cs.VerifiedChains) == 0 {
				t.Errorf("resumption: %t, %d chains", cs.DidResume, len(cs.VerifiedChains))
			}
			for what, server := range map[string]*tls.Config{
				"another authority":  node(others.CertPEM, false),
				"another, optional":  node(others.CertPEM, true),
				"one authority more": node(clients.CertPEM+others.CertPEM, false),
				"optional":           node(clients.CertPEM, true),
				"no authority":       node("", false),
			} {
				fresh := tls.NewLRUClientSessionCache(4)
				if _, ok := dial(node(clients.CertPEM, false), fresh, own.TLS(t)); !ok {
					t.Fatal("the client is refused")
				}
				cs, ok := dial(server, fresh, own.TLS(t))
				if cs.DidResume {
					t.Errorf("%s: resumed", what)
				}
				if want := !strings.HasPrefix(what, "another"); ok != want {
					t.Errorf("%s: let in: %t", what, ok)
				}
			}
			// A session without a client certificate is none where one is needed.
			anonymous := tls.NewLRUClientSessionCache(4)
			if _, ok := dial(node("", false), anonymous); !ok {
				t.Fatal("refused")
			}
			if _, ok := dial(node(clients.CertPEM, false), anonymous); ok {
				t.Error("a client without certificate is let in by a ticket")
			}
		})
	}
}

func TestClientCertificates(t *testing.T) {
	ca, clients, others := certtest.New(t, "ca"), certtest.New(t, "clients"), certtest.New(t, "others")
	pair := ca.Issue(t, certtest.Spec{Hosts: []string{"a.example"}})
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	past := time.Now().Add(-time.Minute)
	for name, c := range map[string]struct {
		cert               []certtest.Pair
		required, optional bool
	}{
		"none":           {nil, false, true},
		"good":           {[]certtest.Pair{clients.Issue(t, certtest.Spec{Usage: client})}, true, true},
		"intermediate":   {[]certtest.Pair{clients.Intermediate(t, "i").Issue(t, certtest.Spec{Usage: client})}, true, true},
		"another CA":     {[]certtest.Pair{others.Issue(t, certtest.Spec{Usage: client})}, false, false},
		"the server's":   {[]certtest.Pair{ca.Issue(t, certtest.Spec{Usage: client})}, false, false},
		"expired":        {[]certtest.Pair{clients.Issue(t, certtest.Spec{Usage: client, NotBefore: past.Add(-time.Hour), NotAfter: past})}, false, false},
		"not yet valid":  {[]certtest.Pair{clients.Issue(t, certtest.Spec{Usage: client, NotBefore: time.Now().Add(time.Hour)})}, false, false},
		"one of servers": {[]certtest.Pair{clients.Issue(t, certtest.Spec{Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})}, false, false},
	} {
		for _, optional := range []bool{false, true} {
			server := listener(t, pair, func(l *Listener) { l.ClientCA, l.ClientsOptional = clients.CertPEM, optional })
			config := &tls.Config{RootCAs: ca.Pool(), ServerName: "a.example"}
			if len(c.cert) > 0 {
				// Shown whether or not the server says that it knows the authority.
				shown := c.cert[0].TLS(t)
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &shown, nil }
			}
			_, serverErr, clientErr := shake(t, server, config)
			want := c.required
			if optional {
				want = c.optional
			}
			if got := serverErr == nil && clientErr == nil; got != want {
				t.Errorf("%s, optional %t: let in %t: %v", name, optional, got, serverErr)
			}
		}
	}
}

func TestPins(t *testing.T) {
	root := certtest.New(t, "root")
	below := root.Intermediate(t, "below")
	pair := below.Issue(t, certtest.Spec{Hosts: []string{"up.example"}})
	stranger := certtest.New(t, "stranger")
	server := listener(t, pair, nil)
	for name, c := range map[string]struct {
		pins  []string
		works bool
	}{
		"leaf":         {[]string{pair.Pin()}, true},
		"intermediate": {[]string{below.Pin()}, true},
		"root":         {[]string{root.Pin()}, true},
		"one of two":   {[]string{stranger.Pin(), below.Pin()}, true},
		"another":      {[]string{stranger.Pin()}, false},
		"none":         {nil, true},
	} {
		client, err := Upstream(root.CertPEM, "up.example", "", "", c.pins...)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := shake(t, server, client); (err == nil) != c.works || err != nil && !errors.Is(err, ErrPin) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A pin is no trust: the chain must verify all the same.
	client, err := Upstream(stranger.CertPEM, "up.example", "", "", pair.Pin())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := shake(t, server, client); err == nil {
		t.Error("a pinned key replaced a trusted chain")
	}
	if _, err := Upstream("", "", "", "", "x"); err == nil {
		t.Error("accepts a pin that is none")
	}
}
