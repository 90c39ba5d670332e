package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Between the planes: TLS 1.3 and nothing older, no session tickets, so that no
// connection outlives a change of trust by resumption.

// ServerControl is the control plane's listener. It serves Join to machines
// without a certificate and everything else to members, so a client certificate
// is optional in the handshake but, when there is one, must be a member's.
// Whether a call needs one is Access's to say.
func ServerControl(l *Live) *tls.Config {
	return server(l, tls.VerifyClientCertIfGiven, []string{"h2"}, Dataplane, Controlplane)
}

// ServerPeers is a listener that only members of the roles reach, for protocols
// other than HTTP/2; the bus is one.
func ServerPeers(l *Live, roles ...Role) *tls.Config {
	return server(l, tls.RequireAndVerifyClientCert, nil, roles...)
}

// ServerAdmin is the admin API's listener under the cluster's own certificate.
// Operators prove themselves with a credential, not with a certificate.
func ServerAdmin(l *Live) *tls.Config {
	return server(l, tls.NoClientCert, []string{"h2", "http/1.1"})
}

func server(l *Live, auth tls.ClientAuthType, protocols []string, roles ...Role) *tls.Config {
	// Each handshake gets the certificate and the authorities of its moment.
	current := func(*tls.ClientHelloInfo) (*tls.Config, error) {
		h := l.cur.Load()
		c := &tls.Config{
			MinVersion:             tls.VersionTLS13,
			Certificates:           []tls.Certificate{h.cert},
			ClientAuth:             auth,
			ClientCAs:              h.roots,
			NextProtos:             protocols,
			SessionTicketsDisabled: true,
		}
		if auth != tls.NoClientCert {
			c.VerifyConnection = func(cs tls.ConnectionState) error { return checkClient(cs, roles) }
		}
		return c, nil
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetConfigForClient:     current,
		ClientAuth:             auth,
		NextProtos:             protocols,
		SessionTicketsDisabled: true,
		// Some servers refuse a configuration without any; handshakes use current's.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &l.cur.Load().cert, nil },
	}
}

// checkClient runs once crypto/tls has verified the chain, if one was sent.
func checkClient(cs tls.ConnectionState, roles []Role) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	id, err := identityOf(cs.PeerCertificates[0].URIs)
	if err != nil {
		return err
	}
	if !slices.Contains(roles, id.Role) {
		return fmt.Errorf("%w: %s", ErrWrongRole, id)
	}
	return nil
}

// ClientControl dials the control plane as a member, over HTTP/2.
func ClientControl(l *Live) *tls.Config { return client(l, true, "h2") }

// ClientPeers dials the control plane as a member, for other protocols; the bus
// is one.
func ClientPeers(l *Live) *tls.Config { return client(l, true) }

// ClientAnonymous dials the control plane's Join without a certificate of one's
// own, but knowing the authorities: what a member does whose certificate ran out
// (see Rejoin).
func ClientAnonymous(l *Live) *tls.Config { return client(l, false, "h2") }

func client(l *Live, own bool, protocols ...string) *tls.Config {
	c := authenticated(func(cs tls.ConnectionState) error {
		return checkServer(cs, l.cur.Load().roots)
	}, protocols...)
	if own {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &l.cur.Load().cert, nil
		}
	}
	return c
}

// ClientJoin dials a control plane that is known only by a join token's pins. The
// token goes over no connection whose other end has not proved to be that
// cluster's control plane.
func ClientJoin(t JoinToken) *tls.Config {
	return authenticated(func(cs tls.ConnectionState) error {
		for _, c := range cs.PeerCertificates[1:] {
			if !slices.Contains(t.pins, pinOf(c)) || !c.IsCA {
				continue
			}
			roots := x509.NewCertPool()
			roots.AddCert(c)
			return checkServer(cs, roots)
		}
		return ErrWrongCluster
	}, "h2")
}

// ClientAdmin dials the admin API of a cluster whose authorities (PEM) a context
// file names. It knows the server by its role and not by its host name, so it
// works under any name and address.
func ClientAdmin(authorities []byte) (*tls.Config, error) {
	ders, err := DecodePEM(authorities)
	if err != nil {
		return nil, fmt.Errorf("cluster authorities: %w", err)
	}
	roots, err := poolOf(ders)
	if err != nil {
		return nil, fmt.Errorf("cluster authorities: %w", err)
	}
	return authenticated(func(cs tls.ConnectionState) error { return checkServer(cs, roots) }, "h2", "http/1.1"), nil
}

// authenticated is a client configuration in which check is the verification.
// crypto/tls's own is off because it can neither follow authorities that change
// nor look at a SPIFFE name; VerifyConnection runs in every handshake, and a
// failure ends it before any application data.
func authenticated(check func(tls.ConnectionState) error, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		InsecureSkipVerify:     true,
		VerifyConnection:       check,
		NextProtos:             protocols,
		SessionTicketsDisabled: true,
	}
}

func checkServer(cs tls.ConnectionState, roots *x509.CertPool) error {
	if err := verify(cs.PeerCertificates, roots, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
		return err
	}
	id, err := identityOf(cs.PeerCertificates[0].URIs)
	if err != nil {
		return err
	}
	if id.Role != Controlplane {
		return fmt.Errorf("%w: %s", ErrWrongRole, id)
	}
	return nil
}
