package keys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/outbound"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	maxSetBytes = 256 << 10
	minTTL      = 5 * time.Minute
	maxTTL      = 24 * time.Hour
	// staleLimit is how long keys serve after their last good fetch: long enough to
	// outlast an identity provider's bad day, short enough that a withdrawn key does
	// not live for ever.
	staleLimit   = 24 * time.Hour
	fetchTimeout = 10 * time.Second
	retryAfter   = 30 * time.Second
)

// localAddress is our end of a failed connection, another port each time: a
// problem must read the same each time, or each would be a revision of its own.
var localAddress = regexp.MustCompile(`\S+:\d+->`)

// Client fetches JWK sets. The zero Client is ready and accepts https only. It
// is safe for concurrent use.
type Client struct {
	// AllowLoopback also accepts http to a loopback address, for development.
	AllowLoopback bool
	// Transport is for tests and proxies; nil means a transport without proxy.
	Transport http.RoundTripper
}

// Fetch returns the issuer's key set as of now. On failure it returns the
// previous keys with Problem set and an early RefreshAt; past StaleAt they are
// left out. The error is what Problem says.
func (c *Client) Fetch(ctx context.Context, issuer *configv1.Issuer, previous *configv1.KeySet, now time.Time) (*configv1.KeySet, error) {
	keys, ttl, err := c.fetch(ctx, issuer)
	if err != nil {
		failed := &configv1.KeySet{Problem: localAddress.ReplaceAllString(err.Error(), ""), RefreshAt: timestamppb.New(now.Add(retryAfter))}
		if previous != nil && previous.StaleAt.AsTime().After(now) {
			failed.Keys, failed.FetchedAt, failed.StaleAt = previous.Keys, previous.FetchedAt, previous.StaleAt
		}
		return failed, err
	}
	return &configv1.KeySet{
		Keys:      keys,
		FetchedAt: timestamppb.New(now),
		RefreshAt: timestamppb.New(now.Add(ttl * 8 / 10)),
		StaleAt:   timestamppb.New(now.Add(max(ttl, staleLimit))),
	}, nil
}

func (c *Client) fetch(ctx context.Context, issuer *configv1.Issuer) ([]*configv1.Key, time.Duration, error) {
	if err := c.CheckURL(issuer.JwksUri); err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, issuer.JwksUri, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("jwksUri: %w", err)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	transport := c.Transport
	if transport == nil {
		own := &http.Transport{
			DialContext: outbound.Dial(c.AllowLoopback, fetchTimeout), ForceAttemptHTTP2: true, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		}
		defer own.CloseIdleConnections()
		transport = own
	}
	// A redirect would let whoever controls one URL name another: RFC 8725, 3.10.
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("fetching keys: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("fetching keys: %s answered %s, expected 200 without redirect", issuer.JwksUri, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxSetBytes+1))
	if err != nil {
		return nil, 0, fmt.Errorf("fetching keys: %w", err)
	}
	if len(body) > maxSetBytes {
		return nil, 0, fmt.Errorf("fetching keys: the set is larger than %d KiB", maxSetBytes>>10)
	}
	keys, err := Vet(body, Accepted(issuer))
	if err != nil {
		return nil, 0, err
	}
	return keys, ttlOf(resp.Header.Get("Cache-Control")), nil
}

// CheckURL refuses what may not be fetched.
func (c *Client) CheckURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("jwksUri: %w", err)
	}
	if u.Host == "" || u.User != nil || u.Fragment != "" {
		return errors.New("jwksUri: expected https://host/path without user and fragment")
	}
	if u.Scheme == "https" || u.Scheme == "http" && c.AllowLoopback && isLoopback(u.Hostname()) {
		return nil
	}
	return errors.New("jwksUri: expected https (http only to a loopback address, with --allow-loopback-jwks)")
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// ttlOf reads max-age (RFC 9111, 5.2.2.1), clamped; without one it is an hour.
func ttlOf(cacheControl string) time.Duration {
	for directive := range strings.SplitSeq(cacheControl, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		if strings.EqualFold(name, "max-age") {
			if seconds, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 32); err == nil && seconds >= 0 {
				return min(max(time.Duration(seconds)*time.Second, minTTL), maxTTL)
			}
		}
	}
	return time.Hour
}
