package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// shake runs a handshake over a real connection, in which the client then hears
// one byte from the server: only then has the server accepted it.
func shake(t *testing.T, serverConfig, clientConfig *tls.Config) (tls.ConnectionState, error, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	type result struct {
		cs  tls.ConnectionState
		err error
	}
	served := make(chan result, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			served <- result{err: err}
			return
		}
		defer raw.Close()
		c := tls.Server(raw, serverConfig)
		if err = c.Handshake(); err == nil {
			_, err = c.Write([]byte("!"))
		}
		served <- result{c.ConnectionState(), err}
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, clientConfig)
	_, clientErr := io.ReadFull(c, make([]byte, 1))
	raw.Close()
	s := <-served
	return s.cs, s.err, clientErr
}

func TestHandshakes(t *testing.T) {
	now := time.Now()
	ca, foreign := newCA(t, now.Add(-48*time.Hour)), newCA(t, now)
	cp := member(t, ca, Controlplane, "c1", now, "127.0.0.1")
	peerCP := member(t, ca, Controlplane, "c2", now)
	node := member(t, ca, Dataplane, "n1", now)
	stranger := member(t, foreign, Dataplane, "n1", now)
	strangeCP := member(t, foreign, Controlplane, "c1", now)
	expired := member(t, ca, Dataplane, "n2", now.Add(-25*time.Hour))
	expiredCP := member(t, ca, Controlplane, "c3", now.Add(-25*time.Hour))
	token, _ := NewJoinToken(ca.Pins())
	admin, err := ClientAdmin(EncodePEM(ca.Authorities()))
	if err != nil {
		t.Fatal(err)
	}
	old := ClientControl(node)
	old.MaxVersion, old.MinVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, c := range map[string]struct {
		server, client *tls.Config
		peer           string // what the server sees
		fails          string // what the client or the server says
	}{
		"node":                       {ServerControl(cp), ClientControl(node), "spiffe://portcullis/dataplane/n1", ""},
		"replica":                    {ServerControl(cp), ClientControl(peerCP), "spiffe://portcullis/controlplane/c2", ""},
		"joining":                    {ServerControl(cp), ClientJoin(token), "", ""},
		"rejoining":                  {ServerControl(cp), ClientAnonymous(expired), "", ""},
		"admin":                      {ServerAdmin(cp), admin, "", ""},
		"bus":                        {ServerPeers(cp, Dataplane, Controlplane), ClientPeers(node), "spiffe://portcullis/dataplane/n1", ""},
		"bus without certificate":    {ServerPeers(cp, Dataplane), ClientAnonymous(node), "", "certificate"},
		"bus, wrong role":            {ServerPeers(cp, Controlplane), ClientPeers(node), "", "another role"},
		"node of another cluster":    {ServerControl(cp), trusting(ClientControl(stranger)), "", "unknown"},
		"expired node":               {ServerControl(cp), ClientControl(expired), "", "expired"},
		"expired control plane":      {ServerControl(expiredCP), ClientControl(node), "", "expired"},
		"join another cluster":       {ServerControl(strangeCP), ClientJoin(token), "", ErrWrongCluster.Error()},
		"follow another cluster":     {ServerControl(strangeCP), ClientControl(node), "", "unknown authority"},
		"administer another cluster": {ServerAdmin(strangeCP), admin, "", "unknown authority"},
		"a node as control plane":    {ServerControl(node), ClientControl(peerCP), "", "key usage"},
		"a node takes joins":         {ServerControl(node), ClientJoin(token), "", "key usage"},
		"TLS 1.2":                    {ServerControl(cp), old, "", "protocol version"},
	} {
		t.Run(name, func(t *testing.T) {
			cs, serverErr, clientErr := shake(t, c.server, c.client)
			if c.fails != "" {
				if clientErr == nil {
					t.Fatal("the client got through")
				}
				if all := errors.Join(clientErr, serverErr).Error(); !strings.Contains(all, c.fails) {
					t.Fatalf("%s; want %q", all, c.fails)
				}
				return
			}
			if clientErr != nil || serverErr != nil {
				t.Fatal(clientErr, serverErr)
			}
			if cs.Version != tls.VersionTLS13 {
				t.Errorf("version %x", cs.Version)
			}
			p, err := PeerIdentity(cs)
			if c.peer == "" {
				if !errors.Is(err, ErrNoPeer) {
					t.Errorf("peer %v, %v", p, err)
				}
			} else if err != nil || p.String() != c.peer || !p.NotAfter.After(now) {
				t.Errorf("peer %v until %v, %v", p, p.NotAfter, err)
			}
		})
	}
}

// trusting lets a client go on to show its certificate to a server that it should
// not have believed.
func trusting(c *tls.Config) *tls.Config {
	c.VerifyConnection = nil
	return c
}

func TestPinnedAuthorityMustSign(t *testing.T) {
	now := time.Now()
	ca, attacker := newCA(t, now), newCA(t, now)
	// The attacker shows the real authority beside a certificate of its own.
	s := member(t, attacker, Controlplane, "c1", now).State()
	config := ServerAdmin(member(t, ca, Controlplane, "c1", now))
	config.GetConfigForClient = nil
	config.GetCertificate = nil
	config.Certificates = []tls.Certificate{{Certificate: [][]byte{s.Certificates[0], ca.Authorities()[0]}, PrivateKey: s.Key}}
	token, _ := NewJoinToken(ca.Pins())
	if _, _, err := shake(t, config, ClientJoin(token)); err == nil {
		t.Error("joined a cluster whose authority signed nothing")
	}
}

func TestLiveSwap(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	cp, node := member(t, ca, Controlplane, "c1", now), member(t, ca, Dataplane, "n1", now)
	server, client := ServerControl(cp), ClientControl(node)
	// The cluster moves to another authority under configurations in use.
	next := &CA{append(append([]authority(nil), newCA(t, now).authorities...), ca.authorities...)}
	newer := member(t, next, Dataplane, "n1", now)
	if _, serverErr, _ := shake(t, server, ClientPeers(newer)); serverErr == nil {
		t.Fatal("an authority counts before it is known")
	}
	if err := cp.Set(member(t, next, Controlplane, "c1", now).State()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := shake(t, server, client); err == nil {
		t.Error("the node believes an authority that it does not know")
	}
	if err := node.Set(newer.State()); err != nil {
		t.Fatal(err)
	}
	if _, serverErr, err := shake(t, server, client); err != nil || serverErr != nil {
		t.Error(err, serverErr)
	}

	if err := node.Set(member(t, next, Dataplane, "n2", now).State()); err == nil {
		t.Error("became another member")
	}
	if err := node.Set(State{Key: cp.State().Key, Issued: newer.State().Issued}); err == nil {
		t.Error("took another's key")
	}
	alien := newer.State()
	alien.Authorities = newCA(t, now).Authorities()
	if err := node.Set(alien); err == nil {
		t.Error("took authorities that did not sign it")
	}
	if err := node.Set(State{}); err == nil {
		t.Error("took nothing")
	}
}

func TestAccess(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	cp, node := member(t, ca, Controlplane, "c1", now), member(t, ca, Dataplane, "n1", now)
	token, _ := NewJoinToken(ca.Pins())
	const check, watch = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
	for name, c := range map[string]struct {
		access        Access
		client        *tls.Config
		unary, stream codes.Code
	}{
		"node, allowed":      {Access{check: {Dataplane}, watch: {Dataplane}}, ClientControl(node), codes.OK, codes.OK},
		"node, wrong role":   {Access{check: {Controlplane}, watch: {Controlplane}}, ClientControl(node), codes.PermissionDenied, codes.PermissionDenied},
		"anonymous, member":  {Access{check: {Anonymous}, watch: {Dataplane}}, ClientControl(node), codes.OK, codes.OK},
		"anonymous, nobody":  {Access{check: {Anonymous}, watch: {Dataplane}}, ClientJoin(token), codes.OK, codes.Unauthenticated},
		"not listed, member": {Access{}, ClientControl(cp), codes.PermissionDenied, codes.PermissionDenied},
		"not listed, nobody": {Access{}, ClientJoin(token), codes.Unauthenticated, codes.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := grpc.NewServer(grpc.Creds(credentials.NewTLS(ServerControl(cp))),
				grpc.UnaryInterceptor(c.access.Unary()), grpc.StreamInterceptor(c.access.Stream()))
			healthpb.RegisterHealthServer(s, health.NewServer())
			done := make(chan error, 1)
			go func() { done <- s.Serve(ln) }()
			defer func() { s.Stop(); <-done }()
			conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(c.client)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
			if status.Code(err) != c.unary {
				t.Errorf("unary: %v", err)
			}
			ss, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
			if err == nil {
				_, err = ss.Recv()
			}
			if status.Code(err) != c.stream {
				t.Errorf("stream: %v", err)
			}
		})
	}
}

func TestNoPeerWithoutTLS(t *testing.T) {
	if _, err := PeerFromContext(t.Context()); !errors.Is(err, ErrNoPeer) {
		t.Error(err)
	}
	if err := (Access{"/m": {Dataplane}}).Check(t.Context(), "/m"); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
}
