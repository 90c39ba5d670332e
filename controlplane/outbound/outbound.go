// Package outbound is how the control plane goes to servers that a declaration
// names: issuers' keys and certificate authorities. It owns which addresses may be
// reached. It must not know what is asked there.
package outbound

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// ErrAddress refuses an address that no such server has and that a name may be
// made to point to.
var ErrAddress = errors.New("loopback, link-local and multicast addresses are not asked")

// Dial returns a DialContext for an http.Transport. It refuses this machine and
// its link, where metadata services listen, by the address that is really dialled;
// with allowLoopback, for development and tests, only the link. timeout bounds a
// dial. The function is safe for concurrent use.
func Dial(allowLoopback bool, timeout time.Duration) func(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: timeout, Control: func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return Vet(at.Addr(), allowLoopback)
	}}
	return dialer.DialContext
}

// Vet returns ErrAddress for an address that is not to be asked.
func Vet(addr netip.Addr, allowLoopback bool) error {
	switch addr = addr.Unmap(); {
	case addr.IsLoopback() && allowLoopback:
		return nil
	case addr.IsLoopback(), addr.IsUnspecified(), addr.IsLinkLocalUnicast(), addr.IsMulticast():
		return ErrAddress
	}
	return nil
}
