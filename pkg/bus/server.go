package bus

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// ServerConfig describes an embedded NATS server. The zero ServerConfig serves
// this process only and opens no socket.
type ServerConfig struct {
	// Name of the server, unique in its cluster; "" for a random one.
	Name string
	// Listen is host:port for other processes, port 0 for any; "" for none.
	Listen string
	// TLS is required with Listen, unless Plaintext. It must ask for and verify
	// client certificates, unless there is a Username.
	TLS *tls.Config
	// Plaintext allows connections without TLS, and without a Username too: for
	// tests and for networks that are the same machine.
	Plaintext bool
	// Username and Password that clients need; "" for none.
	Username, Password string
	// Routes joins this server with others; nil for none.
	Routes *RoutesConfig
}

// RoutesConfig joins servers: a message to one reaches the members on all.
type RoutesConfig struct {
	// Cluster is the same on all of them; "" for "portcullis".
	Cluster string
	// Listen is host:port for the other servers, port 0 for any.
	Listen string
	// Peers are routes' addresses, host:port, of any of the other servers.
	Peers []string
	// TLS is used both ways, so it needs RootCAs, ClientCAs and a certificate for
	// both. Required, unless the server's Plaintext.
	TLS *tls.Config
}

// Server is an embedded NATS server. It keeps nothing on disk.
type Server struct {
	server             *server.Server
	secure             bool
	username, password string
}

// StartEmbedded starts a server and returns when it serves. Errors are ErrMisuse
// and those of listening.
func StartEmbedded(c ServerConfig) (*Server, error) {
	o := &server.Options{
		ServerName: c.Name,
		DontListen: c.Listen == "",
		NoLog:      true,
		NoSigs:     true,
		MaxPayload: MaxPayload + 4096,
		// A client that does not read for this long is cut off, rather than kept.
		WriteDeadline:   2 * time.Second,
		MaxControlLine:  4096,
		NoSystemAccount: true,
	}
	if c.Name == "" {
		o.ServerName = "portcullis-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	}
	if c.Username != "" {
		if c.Password == "" {
			return nil, fmt.Errorf("%w: a server's Username without a Password", ErrMisuse)
		}
		o.Users = []*server.User{{Username: c.Username, Password: c.Password, Permissions: permissions()}}
	}
	if c.Listen != "" {
		if err := c.listen(o); err != nil {
			return nil, err
		}
	}
	if c.Routes != nil {
		if err := c.routes(o); err != nil {
			return nil, err
		}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("start the embedded NATS server: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, fmt.Errorf("the embedded NATS server cannot listen on %q", c.Listen)
	}
	return &Server{s, c.TLS != nil, c.Username, c.Password}, nil
}

// permissions keep clients to what the bus needs.
func permissions() *server.Permissions {
	all := &server.SubjectPermission{Allow: []string{"portcullis.>"}}
	return &server.Permissions{Publish: all, Subscribe: all}
}

func (c ServerConfig) listen(o *server.Options) (err error) {
	switch {
	case c.TLS == nil && !c.Plaintext:
		return fmt.Errorf("%w: a server that listens needs TLS", ErrMisuse)
	case c.TLS != nil && c.TLS.ClientAuth != tls.RequireAndVerifyClientCert && c.Username == "":
		return fmt.Errorf("%w: a server that listens needs client certificates or a Username", ErrMisuse)
	}
	if o.Host, o.Port, err = hostPort(c.Listen); err != nil {
		return err
	}
	if c.TLS != nil {
		o.TLSConfig, o.TLS, o.TLSTimeout = c.TLS, true, 5
		o.TLSVerify = c.TLS.ClientAuth == tls.RequireAndVerifyClientCert
	}
	return nil
}

func (c ServerConfig) routes(o *server.Options) (err error) {
	r := c.Routes
	if r.TLS == nil && !c.Plaintext {
		return fmt.Errorf("%w: routes between servers need TLS", ErrMisuse)
	}
	o.Cluster.Name = r.Cluster
	if r.Cluster == "" {
		o.Cluster.Name = "portcullis"
	}
	if o.Cluster.Host, o.Cluster.Port, err = hostPort(r.Listen); err != nil {
		return err
	}
	if r.TLS != nil {
		o.Cluster.TLSConfig, o.Cluster.TLSTimeout = r.TLS, 5
	}
	for _, p := range r.Peers {
		if _, _, err := hostPort(p); err != nil {
			return err
		}
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: p})
	}
	return nil
}

// hostPort parses an address; NATS writes -1 for any port.
func hostPort(address string) (string, int, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("%w: %w", ErrMisuse, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%w: address %s: the port is no number", ErrMisuse, address)
	}
	if n == 0 {
		return host, -1, nil
	}
	return host, int(n), nil
}

// InProcessConn connects a client of this process; Connect uses it.
func (s *Server) InProcessConn() (net.Conn, error) { return s.server.InProcessConn() }

// URL is where other processes connect; "" when the server does not listen.
func (s *Server) URL() string {
	a := s.server.Addr()
	if a == nil {
		return ""
	}
	scheme := "nats://"
	if s.secure {
		scheme = "tls://"
	}
	return scheme + a.String()
}

// RoutesAddr is where other servers connect, host:port; "" without routes.
func (s *Server) RoutesAddr() string {
	if a := s.server.ClusterAddr(); a != nil {
		return a.String()
	}
	return ""
}

// Peers returns how many other servers this one is joined with now.
func (s *Server) Peers() int {
	return s.server.NumRemotes()
}

// Close stops the server and returns when it has stopped.
func (s *Server) Close() error {
	s.server.Shutdown()
	s.server.WaitForShutdown()
	return nil
}
