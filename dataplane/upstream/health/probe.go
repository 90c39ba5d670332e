package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// probe asks over a connection of its own: an endpoint that answers on old
// connections and accepts no new one is not well.
func probe(ctx context.Context, c *Check, t Target) error {
	switch c.Protocol {
	case HTTP:
		return probeHTTP(ctx, c, t)
	case GRPC:
		return probeGRPC(ctx, c, t)
	}
	return probeTCP(ctx, t)
}

// probeTCP connects; with TLS it also shakes hands, without which nothing is served.
func probeTCP(ctx context.Context, t Target) error {
	conn, err := connect(ctx, t)
	if err != nil {
		return err
	}
	return conn.Close()
}

func connect(ctx context.Context, t Target) (net.Conn, error) {
	conn, err := t.dial(ctx, "tcp", t.Address)
	if err != nil || t.TLS == nil {
		return conn, err
	}
	secure := tls.Client(conn, t.TLS)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// maxHead bounds the header of an answer in bytes.
const maxHead = 64 << 10

func probeHTTP(ctx context.Context, c *Check, t Target) error {
	transport := &http.Transport{
		DialContext:            t.dial,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHead,
		Protocols:              new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(!t.HTTP2)
	transport.Protocols.SetHTTP2(t.HTTP2)
	transport.Protocols.SetUnencryptedHTTP2(t.HTTP2)
	scheme := "http"
	if t.TLS != nil {
		scheme = "https"
		// What is offered by ALPN is what is spoken.
		transport.TLSClientConfig = t.TLS.Clone()
		transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
		if t.HTTP2 {
			transport.TLSClientConfig.NextProtos = []string{"h2"}
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+t.Address+c.Path, nil)
	if err != nil {
		return err
	}
	req.Host = orElse(c.Host, orElse(t.Host, t.Address))
	req.Header.Set("User-Agent", "portcullis-health")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if !c.expects(resp.StatusCode) {
		return errors.New(detailOf(resp.StatusCode, nil))
	}
	return nil
}

// expects says whether the status is that of an endpoint that is well.
func (c *Check) expects(code int) bool {
	if len(c.Statuses) == 0 {
		return code >= 200 && code <= 299
	}
	return slices.Contains(c.Statuses, uint32(code))
}

// probeGRPC calls grpc.health.v1.Health/Check.
func probeGRPC(ctx context.Context, c *Check, t Target) error {
	secured := insecure.NewCredentials()
	if t.TLS != nil {
		secured = credentials.NewTLS(t.TLS)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(secured), grpc.WithUserAgent("portcullis-health"), grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return t.dial(ctx, "tcp", address)
		}),
	}
	if t.TLS == nil || t.TLS.ServerName == "" {
		// With a name of its own the configuration is the authority.
		options = append(options, grpc.WithAuthority(orElse(t.Host, t.Address)))
	}
	conn, err := grpc.NewClient("passthrough:///"+t.Address, options...)
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: c.Service})
	switch {
	case status.Code(err) == codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case status.Code(err) == codes.Unavailable:
		// The status hides why: a connection of our own says it.
		if err := probeTCP(ctx, t); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	case err != nil:
		return fmt.Errorf("grpc status %s", status.Code(err))
	case resp.GetStatus() != healthv1.HealthCheckResponse_SERVING:
		return fmt.Errorf("grpc health %s", resp.GetStatus())
	}
	return nil
}
