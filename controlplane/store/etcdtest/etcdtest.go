// Package etcdtest starts etcd clusters in a test's own process, over loopback
// TCP and with etcd's default limits: what an external cluster is to the store.
package etcdtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Config says what cluster to start.
type Config struct {
	// Members; default 1.
	Members int
	// TLS serves with certificates and asks for the client's.
	TLS bool
	// Username and Password of a user that may read and write Prefix, and nothing
	// else. Empty: no authentication.
	Username, Password, Prefix string
	// Quota in bytes; 0: etcd's default.
	Quota int64
}

// Cluster is a running cluster. Its methods are for the test's own goroutine.
type Cluster struct {
	// Endpoints of all members, as URLs.
	Endpoints []string
	// TLS is a client's configuration; nil without TLS.
	TLS *tls.Config

	configs []*embed.Config
	members []*embed.Etcd
}

// Start starts a cluster and waits until it is ready. The test's end stops it.
func Start(t *testing.T, cfg Config) *Cluster {
	t.Helper()
	if cfg.Members == 0 {
		cfg.Members = 1
	}
	c := &Cluster{members: make([]*embed.Etcd, cfg.Members)}
	scheme := "http"
	var server transport.TLSInfo
	if cfg.TLS {
		scheme = "https"
		server, c.TLS = certificates(t)
	}
	ports := freePorts(t, 2*cfg.Members)
	var initial []string
	for i := range cfg.Members {
		initial = append(initial, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, ports[2*i]))
	}
	for i := range cfg.Members {
		ec := embed.NewConfig()
		ec.Name = fmt.Sprintf("m%d", i)
		ec.Dir = filepath.Join(t.TempDir(), ec.Name)
		peer := url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", ports[2*i])}
		client := url.URL{Scheme: scheme, Host: fmt.Sprintf("127.0.0.1:%d", ports[2*i+1])}
		ec.ListenPeerUrls, ec.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
		ec.ListenClientUrls, ec.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
		ec.InitialCluster = strings.Join(initial, ",")
		ec.ClientTLSInfo = server
		ec.QuotaBackendBytes = cfg.Quota
		ec.BcryptCost = 4 // the least: what is tested is not the hash
		ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
		c.configs = append(c.configs, ec)
		c.Endpoints = append(c.Endpoints, client.String())
	}
	t.Cleanup(func() {
		for i := range c.members {
			c.Stop(i)
		}
	})
	for i := range c.configs {
		c.start(t, i)
	}
	for i := range c.configs {
		c.ready(t, i)
	}
	if cfg.Username != "" {
		c.authenticate(t, cfg)
	}
	return c
}

func (c *Cluster) start(t *testing.T, i int) {
	t.Helper()
	m, err := embed.StartEtcd(c.configs[i])
	if err != nil {
		t.Fatalf("etcd %d: %v", i, err)
	}
	c.members[i] = m
}

func (c *Cluster) ready(t *testing.T, i int) {
	t.Helper()
	select {
	case <-c.members[i].Server.ReadyNotify():
	case <-time.After(time.Minute):
		t.Fatalf("etcd %d is not ready after a minute", i)
	}
}

// Stop ends a member and waits until it has ended.
func (c *Cluster) Stop(i int) {
	if m := c.members[i]; m != nil {
		m.Close()
		<-m.Server.StopNotify()
		c.members[i] = nil
	}
}

// Restart starts a stopped member on what it has on disk.
func (c *Cluster) Restart(t *testing.T, i int) {
	t.Helper()
	c.configs[i].ClusterState = embed.ClusterStateFlagExisting
	c.start(t, i)
	c.ready(t, i)
}

// Leader is the running member that leads, or -1.
func (c *Cluster) Leader() int {
	for i, m := range c.members {
		if m != nil && m.Server.Leader() == m.Server.MemberID() {
			return i
		}
	}
	return -1
}

// Client is a client of its own; the test's end closes it.
func (c *Cluster) Client(t *testing.T, username, password string) *clientv3.Client {
	t.Helper()
	cl, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, TLS: c.TLS, Username: username, Password: password,
		Logger: zap.NewNop(), DialTimeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatalf("etcd client: %v", err)
	}
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

// authenticate makes the least-privileged user and switches authentication on.
func (c *Cluster) authenticate(t *testing.T, cfg Config) {
	t.Helper()
	cl := c.Client(t, "", "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	do := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	_, err := cl.UserAdd(ctx, "root", "root-password")
	do("adding root", err)
	_, err = cl.UserGrantRole(ctx, "root", "root")
	do("granting root", err)
	_, err = cl.RoleAdd(ctx, "portcullis")
	do("adding a role", err)
	_, err = cl.RoleGrantPermission(ctx, "portcullis", cfg.Prefix, clientv3.GetPrefixRangeEnd(cfg.Prefix),
		clientv3.PermissionType(clientv3.PermReadWrite))
	do("granting a prefix", err)
	_, err = cl.UserAdd(ctx, cfg.Username, cfg.Password)
	do("adding a user", err)
	_, err = cl.UserGrantRole(ctx, cfg.Username, "portcullis")
	do("granting the role", err)
	_, err = cl.AuthEnable(ctx)
	do("enabling authentication", err)
}

// freePorts are loopback ports that were free a moment ago.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// certificates makes a CA, a server's certificate as files and a client's.
func certificates(t *testing.T) (transport.TLSInfo, *tls.Config) {
	t.Helper()
	dir := t.TempDir()
	ca, caKey := certificate(t, "etcd test CA", nil, nil)
	server, serverKey := certificate(t, "etcd", ca, caKey)
	client, clientKey := certificate(t, "portcullis", ca, caKey)
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := x509.MarshalPKCS8PrivateKey(serverKey)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return transport.TLSInfo{
			TrustedCAFile:  write("ca.pem", "CERTIFICATE", ca.Raw),
			CertFile:       write("server.pem", "CERTIFICATE", server.Raw),
			KeyFile:        write("server-key.pem", "PRIVATE KEY", key),
			ClientCertAuth: true,
		}, &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: pool,
			Certificates: []tls.Certificate{{Certificate: [][]byte{client.Raw}, PrivateKey: clientKey}},
		}
}

func certificate(t *testing.T, name string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:        ca == nil, BasicConstraintsValid: true,
	}
	if ca == nil {
		ca, caKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}
