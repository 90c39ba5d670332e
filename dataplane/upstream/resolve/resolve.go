// Package resolve keeps the endpoints that DNS names, current. It owns the
// lookups and what the last good answer was. It knows nothing of connections,
// health and balancing.
package resolve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// DefaultRefresh is how often a name is looked up.
const DefaultRefresh = 10 * time.Second

// maxTargets bounds what one name brings; of more, the first in order are taken.
const maxTargets = 1000

// ErrEmpty is the error of an answer that holds no target.
var ErrEmpty = errors.New("the answer holds no target")

// Query is what is looked up, and how often. It is comparable: queries that are
// equal share one lookup.
type Query struct {
	// Name to look up. With a Server it is taken as fully qualified; without, the
	// system's search list applies.
	Name string
	// Service asks for SRV records (RFC 2782) under exactly this name, instead of A
	// and AAAA.
	Service bool
	// Server is the address:port of a DNS server; "": the system's.
	Server string
	// Refresh is the time between lookups; 0: DefaultRefresh.
	Refresh time.Duration
}

// Target is one answer.
type Target struct {
	// Host is an address, or the name that an SRV record points to: lower case,
	// without the last dot.
	Host string
	// Port, Priority and Weight are those of the SRV record; 0 for an address.
	Port, Priority, Weight uint16
}

// Compare orders targets by priority, host and port.
func (t Target) Compare(o Target) int {
	return cmp.Or(cmp.Compare(t.Priority, o.Priority), cmp.Compare(t.Host, o.Host), cmp.Compare(t.Port, o.Port), cmp.Compare(t.Weight, o.Weight))
}

// Resolver returns what looks names up at the server, over UDP and, when an
// answer is truncated, TCP; "" means the system's servers. A lookup that fails in
// part fails: half of the addresses would be taken for all.
func Resolver(server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, network, systems string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, cmp.Or(server, systems))
		if err != nil {
			return nil, err
		}
		// The resolver gives up with its context, but goes on reading until a timeout
		// of its own.
		context.AfterFunc(ctx, func() { _ = c.Close() })
		return c, nil
	}}
}

// Lookup asks once. The targets are sorted, each is there once, and there is at
// least one.
func Lookup(ctx context.Context, q Query) ([]Target, error) {
	resolver, name := Resolver(q.Server), q.Name
	if q.Server != "" && !strings.HasSuffix(name, ".") {
		name += "."
	}
	var targets []Target
	if q.Service {
		// The error that comes with records says that others of them were malformed.
		_, records, err := resolver.LookupSRV(ctx, "", "", name)
		if err != nil && len(records) == 0 {
			return nil, fmt.Errorf("look up SRV of %s: %w", q.Name, err)
		}
		for _, r := range records {
			// A target of "." says that the service is not there (RFC 2782).
			if host := strings.ToLower(strings.TrimSuffix(r.Target, ".")); host != "" && r.Port != 0 {
				targets = append(targets, Target{host, r.Port, r.Priority, r.Weight})
			}
		}
	} else {
		addresses, err := resolver.LookupNetIP(ctx, "ip", name)
		if err != nil {
			return nil, fmt.Errorf("look up %s: %w", q.Name, err)
		}
		for _, a := range addresses {
			targets = append(targets, Target{Host: plain(a)})
		}
	}
	if targets = tidy(targets); len(targets) == 0 {
		return nil, fmt.Errorf("look up %s: %w", q.Name, ErrEmpty)
	}
	return targets, nil
}

func plain(a netip.Addr) string { return a.Unmap().WithZone("").String() }

// tidy sorts, and keeps one of what is there twice: of two weights, the lesser.
func tidy(targets []Target) []Target {
	slices.SortFunc(targets, Target.Compare)
	targets = slices.CompactFunc(targets, func(a, b Target) bool {
		return a.Host == b.Host && a.Port == b.Port && a.Priority == b.Priority
	})
	// A target of two priorities is of the better one.
	seen := make(map[Target]bool, len(targets))
	targets = slices.DeleteFunc(targets, func(t Target) bool {
		place := Target{Host: t.Host, Port: t.Port}
		defer func() { seen[place] = true }()
		return seen[place]
	})
	return targets[:min(len(targets), maxTargets)]
}
