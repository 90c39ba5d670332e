package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"portcullis.dev/portcullis/pkg/secret"
)

// Files are TLS material that someone else manages, for an external etcd or NATS
// and for listeners with a certificate of their own. Certificate and key are read
// again when they change.
type Files struct {
	// CA is the authorities' PEM file. For a client, empty means the system's; for
	// a server, clients need a certificate exactly when it is set.
	CA string
	// Certificate and Key are PEM files, both or neither; a server needs them. The
	// key file must keep others out.
	Certificate string
	Key         string
	// ServerName is what a client verifies and sends; empty: the address dialled.
	ServerName string
	// Log tells of a changed pair that cannot be used; nil: nobody.
	Log *slog.Logger
}

// Client returns a client configuration: TLS 1.2 and up, since the other end is
// not ours.
func (f Files) Client() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.ServerName}
	var err error
	if f.CA != "" {
		if c.RootCAs, err = readPool(f.CA); err != nil {
			return nil, err
		}
	}
	pair, err := f.pair()
	if err != nil {
		return nil, err
	}
	if pair != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.current(), nil }
	}
	return c, nil
}

// Server returns a listener's configuration: TLS 1.3.
func (f Files) Server(protocols ...string) (*tls.Config, error) {
	pair, err := f.pair()
	if err != nil {
		return nil, err
	}
	if pair == nil {
		return nil, errors.New("a listener with TLS needs a certificate and a key file")
	}
	c := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     protocols,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.current(), nil },
	}
	if f.CA != "" {
		if c.ClientCAs, err = readPool(f.CA); err != nil {
			return nil, err
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}

// Upstream returns the configuration toward an upstream, of PEM texts: ca empty
// means the system's authorities, serverName empty the endpoint's host,
// certificate and key are both there or neither, and of pins one must be in the
// verified chain. TLS 1.2 and up.
func Upstream(ca, serverName, certificate, key string, pins ...string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: serverName}
	if len(pins) > 0 {
		var err error
		if c.VerifyConnection, err = pinned(pins); err != nil {
			return nil, err
		}
	}
	if ca != "" {
		ders, err := DecodePEM([]byte(ca))
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		for _, der := range ders {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, fmt.Errorf("ca: %w", err)
			}
			c.RootCAs.AddCert(cert)
		}
	}
	switch {
	case certificate == "" && key == "":
		return c, nil
	case certificate == "" || key == "":
		return nil, errors.New("certificate and private key go together: one is missing")
	}
	pair, err := tls.X509KeyPair([]byte(certificate), []byte(key))
	if err != nil {
		return nil, fmt.Errorf("certificate and private key: %w", err)
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

func readPool(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	ders, err := DecodePEM(data)
	if err != nil {
		return nil, fmt.Errorf("CA file %s: %w", path, err)
	}
	pool := x509.NewCertPool()
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("CA file %s: %w", path, err)
		}
		pool.AddCert(cert)
	}
	return pool, nil
}

func (f Files) pair() (*filePair, error) {
	switch {
	case f.Certificate == "" && f.Key == "":
		return nil, nil
	case f.Certificate == "":
		return nil, errors.New("a key file needs a certificate file")
	case f.Key == "":
		return nil, errors.New("a certificate file needs a key file")
	}
	p := &filePair{files: f}
	cert, stamp, err := p.read()
	if err != nil {
		return nil, err
	}
	if time.Now().After(cert.Leaf.NotAfter) {
		return nil, fmt.Errorf("certificate file %s: expired at %s", f.Certificate, cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	p.cert, p.seen = cert, stamp
	return p, nil
}

// filePair is a certificate and key that follow their files.
type filePair struct {
	files Files

	mu   sync.Mutex
	cert *tls.Certificate
	seen fileStamp
}

type fileStamp struct{ cert, key modified }

type modified struct {
	at   time.Time
	size int64
}

// current looks at the files' times, which costs microseconds beside a handshake,
// and keeps the old pair while the new one cannot be used.
func (p *filePair) current() *tls.Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	stamp, err := p.stamp()
	if err == nil && stamp == p.seen {
		return p.cert
	}
	cert, stamp, err := p.read()
	if err != nil {
		if stamp != p.seen && p.files.Log != nil {
			p.files.Log.Error("changed certificate is not used", "error", err)
		}
		p.seen = stamp
		return p.cert
	}
	p.cert, p.seen = cert, stamp
	return cert
}

func (p *filePair) stamp() (s fileStamp, err error) {
	c, err := os.Stat(p.files.Certificate)
	if err != nil {
		return s, err
	}
	k, err := os.Stat(p.files.Key)
	if err != nil {
		return s, err
	}
	return fileStamp{modifiedOf(c), modifiedOf(k)}, nil
}

func modifiedOf(i fs.FileInfo) modified { return modified{i.ModTime(), i.Size()} }

func (p *filePair) read() (*tls.Certificate, fileStamp, error) {
	// The stamp first: a change in between is then seen the next time.
	stamp, err := p.stamp()
	if err != nil {
		return nil, stamp, fmt.Errorf("certificate and key files: %w", err)
	}
	certPEM, err := os.ReadFile(p.files.Certificate)
	if err != nil {
		return nil, stamp, fmt.Errorf("certificate file: %w", err)
	}
	keyPEM, err := secret.ReadFile(p.files.Key)
	if err != nil {
		return nil, stamp, fmt.Errorf("key file: %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, stamp, fmt.Errorf("certificate file %s with key file %s: %w", p.files.Certificate, p.files.Key, err)
	}
	return &cert, stamp, nil
}
