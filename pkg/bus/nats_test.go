package bus_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/bus/bustest"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func connect(t *testing.T, name string, c bus.NATSConfig) bus.Bus {
	t.Helper()
	b, err := bus.Connect(t.Context(), bus.Config{Name: name, Keys: []*controlv1.BusKey{bustest.Key(1)}, NATS: c})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close %s: %v", name, err)
		}
	})
	return b
}

// beats subscribes to what others send.
func beats(t *testing.T, b bus.Bus) <-chan int64 {
	t.Helper()
	got := make(chan int64, 1000)
	if _, err := b.Subscribe(bus.Beat, func(_ bus.Sender, m proto.Message) {
		select {
		case got <- m.(*busv1.Beat).Progress:
		default:
		}
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

// reaches publishes until something arrives: after a reconnect, or between
// servers, interest takes a moment to spread.
func reaches(t *testing.T, from bus.Bus, got <-chan int64) {
	t.Helper()
	for len(got) > 0 {
		<-got
	}
	end := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_ = from.Publish(bus.Beat, &busv1.Beat{Progress: 1})
		select {
		case <-got:
			return
		case <-tick.C:
		case <-end:
			t.Fatal("nothing arrives")
		}
	}
}

// authority is a CA for the test, and a certificate of it for 127.0.0.1.
func authority(t *testing.T) (pool *x509.CertPool, cert tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(leaf)
	return pool, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func mutual(pool *x509.CertPool, cert tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

func TestTLS(t *testing.T) {
	pool, cert := authority(t)
	s := start(t, bus.ServerConfig{Listen: "127.0.0.1:0", TLS: mutual(pool, cert)})
	if !strings.HasPrefix(s.URL(), "tls://127.0.0.1:") {
		t.Fatalf("URL %q", s.URL())
	}
	a := connect(t, "a", bus.NATSConfig{URLs: []string{s.URL()}, TLS: mutual(pool, cert)})
	b := connect(t, "b", bus.NATSConfig{Server: s})
	await(t, a, true)
	await(t, b, true)
	reaches(t, a, beats(t, b))
	reaches(t, b, beats(t, a))

	otherPool, otherCert := authority(t)
	stranger := connect(t, "c", bus.NATSConfig{URLs: []string{s.URL()}, TLS: mutual(pool, otherCert)})
	wary := connect(t, "d", bus.NATSConfig{URLs: []string{s.URL()}, TLS: mutual(otherPool, cert)})
	plain := connect(t, "e", bus.NATSConfig{URLs: []string{strings.Replace(s.URL(), "tls", "nats", 1)}, Plaintext: true})
	// Three round trips of the others are time enough for a handshake.
	for range 3 {
		reaches(t, a, beats(t, b))
	}
	for name, m := range map[string]bus.Bus{"stranger": stranger, "wary": wary, "plain": plain} {
		if m.Connected() {
			t.Errorf("%s is connected", name)
		}
		if err := m.Publish(bus.Beat, &busv1.Beat{}); !errors.Is(err, bus.ErrDisconnected) {
			t.Errorf("%s publishes: %v", name, err)
		}
	}
}

func TestPassword(t *testing.T) {
	pool, cert := authority(t)
	serverTLS := mutual(pool, cert)
	serverTLS.ClientAuth = tls.NoClientCert
	s := start(t, bus.ServerConfig{Listen: "127.0.0.1:0", TLS: serverTLS, Username: "bus", Password: "secret"})
	client := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	a := connect(t, "a", bus.NATSConfig{URLs: []string{s.URL()}, TLS: client, Username: "bus", Password: "secret"})
	b := connect(t, "b", bus.NATSConfig{Server: s})
	wrong := connect(t, "c", bus.NATSConfig{URLs: []string{s.URL()}, TLS: client, Username: "bus", Password: "wrong"})
	await(t, a, true)
	await(t, b, true)
	reaches(t, a, beats(t, b))
	reaches(t, b, beats(t, a))
	if wrong.Connected() {
		t.Error("connected with the wrong password")
	}
	// Whoever has the password still gets at nothing but the bus.
	refused := make(chan error, 1)
	raw, err := nats.Connect(s.URL(), nats.Secure(client), nats.UserInfo("bus", "secret"),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			select {
			case refused <- err:
			default:
			}
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.SubscribeSync(">"); err != nil {
		t.Fatal(err)
	}
	if err := <-refused; !errors.Is(err, nats.ErrPermissionViolation) {
		t.Errorf("subscribing to everything: %v", err)
	}
}

// A bus opens before its server is there and comes back whenever it does.
func TestReconnect(t *testing.T) {
	first := start(t, bus.ServerConfig{Listen: "127.0.0.1:0", Plaintext: true})
	url := first.URL()
	address := strings.TrimPrefix(url, "nats://")
	_ = first.Close()

	a := connect(t, "a", bus.NATSConfig{URLs: []string{url}, Plaintext: true})
	b := connect(t, "b", bus.NATSConfig{URLs: []string{url}, Plaintext: true})
	if a.Connected() {
		t.Fatal("connected to nothing")
	}
	got := beats(t, b)
	for range 3 {
		if err := a.Publish(bus.Beat, &busv1.Beat{}); !errors.Is(err, bus.ErrDisconnected) {
			t.Fatalf("publish: %v", err)
		}
		s := start(t, bus.ServerConfig{Listen: address, Plaintext: true})
		await(t, a, true)
		await(t, b, true)
		reaches(t, a, got)
		_ = s.Close()
		await(t, a, false)
		await(t, b, false)
	}
	if a.Stats().Lost < 3 {
		t.Errorf("stats %+v", a.Stats())
	}
}

// Three servers; a member's is killed.
func TestServersInACluster(t *testing.T) {
	pool, cert := authority(t)
	var servers []*bus.Server
	var urls, routes []string
	for range 3 {
		s := start(t, bus.ServerConfig{
			Listen: "127.0.0.1:0", TLS: mutual(pool, cert),
			Routes: &bus.RoutesConfig{Listen: "127.0.0.1:0", Peers: routes, TLS: mutual(pool, cert)},
		})
		servers = append(servers, s)
		urls = append(urls, s.URL())
		routes = append(routes, s.RoutesAddr())
	}
	// The first in the list is the one that NATS clients take, or any: each member
	// knows its own server and one to fall back on.
	a := connect(t, "a", bus.NATSConfig{URLs: urls[0:1], TLS: mutual(pool, cert)})
	b := connect(t, "b", bus.NATSConfig{URLs: urls[1:2], TLS: mutual(pool, cert)})
	got := beats(t, b)
	reaches(t, a, got)
	if servers[0].Peers() == 0 {
		t.Error("the server says that it is alone")
	}
	_ = servers[1].Close() // b learns of the others from its own
	reaches(t, a, got)
}

// A server that takes no bytes any more does not hold up Publish.
func TestPublishDoesNotBlock(t *testing.T) {
	s := start(t, bus.ServerConfig{Listen: "127.0.0.1:0", Plaintext: true})
	stall, url := stalling(t, strings.TrimPrefix(s.URL(), "nats://"))
	a := connect(t, "a", bus.NATSConfig{URLs: []string{url}, Plaintext: true})
	await(t, a, true)
	close(stall)
	big := &busv1.Spent{Totals: []*busv1.Total{{Key: make([]byte, 100<<10)}}}
	done := make(chan error, 1)
	go func() {
		for {
			if err := a.Publish(bus.Spent, big); err != nil {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		if !errors.Is(err, bus.ErrOverflow) && !errors.Is(err, bus.ErrDisconnected) {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("publish blocks")
	}
	if a.Stats().Lost == 0 {
		t.Fatal("the loss is not counted")
	}
}

// stalling is a proxy that stops to forward when stall is closed.
func stalling(t *testing.T, target string) (stall chan struct{}, url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stall, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		client, err := l.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		server, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		defer server.Close()
		go func() { _, _ = io.Copy(client, server) }()
		buf := make([]byte, 4096)
		for {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			select {
			case <-stall:
				<-t.Context().Done()
				return
			default:
			}
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-ended
	})
	return stall, "nats://" + l.Addr().String()
}

func TestConnectRefuses(t *testing.T) {
	open := func(c bus.NATSConfig) error {
		_, err := bus.Connect(t.Context(), bus.Config{Name: "a", NATS: c})
		return err
	}
	for name, err := range map[string]error{
		"no URL":         open(bus.NATSConfig{}),
		"no TLS":         open(bus.NATSConfig{URLs: []string{"nats://127.0.0.1:1"}}),
		"other scheme":   open(bus.NATSConfig{URLs: []string{"http://127.0.0.1:1"}, Plaintext: true}),
		"no credentials": open(bus.NATSConfig{URLs: []string{"nats://127.0.0.1:1"}, Plaintext: true, Credentials: "/nowhere.creds"}),
		"no host":        open(bus.NATSConfig{URLs: []string{"nats://"}, Plaintext: true}),
	} {
		if !errors.Is(err, bus.ErrMisuse) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := bus.Connect(ctx, bus.Config{Name: "a", NATS: bus.NATSConfig{URLs: []string{"nats://127.0.0.1:1"}, Plaintext: true}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestServerRefuses(t *testing.T) {
	pool, cert := authority(t)
	lax := mutual(pool, cert)
	lax.ClientAuth = tls.NoClientCert
	for name, c := range map[string]bus.ServerConfig{
		"no TLS":           {Listen: "127.0.0.1:0"},
		"anybody":          {Listen: "127.0.0.1:0", TLS: lax},
		"no password":      {Username: "bus"},
		"no port":          {Listen: "127.0.0.1", Plaintext: true},
		"bad port":         {Listen: "127.0.0.1:x", Plaintext: true},
		"plain routes":     {Routes: &bus.RoutesConfig{Listen: "127.0.0.1:0"}},
		"routes to nobody": {Plaintext: true, Routes: &bus.RoutesConfig{Listen: "127.0.0.1:0", Peers: []string{"x"}}},
	} {
		s, err := bus.StartEmbedded(c)
		if err == nil {
			_ = s.Close()
		}
		if !errors.Is(err, bus.ErrMisuse) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	s, err := bus.StartEmbedded(bus.ServerConfig{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	var members []bus.Bus
	for _, name := range []string{"a", "b"} {
		m, err := bus.Connect(b.Context(), bus.Config{Name: name, Keys: []*controlv1.BusKey{bustest.Key(1)}, NATS: bus.NATSConfig{Server: s}})
		if err != nil {
			b.Fatal(err)
		}
		defer m.Close()
		members = append(members, m)
	}
	got := make(chan struct{}, 1)
	if _, err := members[1].Subscribe(bus.Beat, func(bus.Sender, proto.Message) { got <- struct{}{} }); err != nil {
		b.Fatal(err)
	}
	msg := &busv1.Beat{Progress: 1}
	b.ReportAllocs()
	for b.Loop() { // from publish to the handler
		if err := members[0].Publish(bus.Beat, msg); err != nil {
			b.Fatal(err)
		}
		<-got
	}
}
