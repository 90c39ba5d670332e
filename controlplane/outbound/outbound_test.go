package outbound

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestVet(t *testing.T) {
	for address, want := range map[string]struct{ production, development bool }{
		"192.0.2.1": {true, true}, "10.1.2.3": {true, true}, "2001:db8::1": {true, true}, "fd00::1": {true, true},
		"127.0.0.1": {false, true}, "127.8.8.8": {false, true}, "::1": {false, true}, "::ffff:127.0.0.1": {false, true},
		"0.0.0.0": {}, "::": {}, "169.254.169.254": {}, "::ffff:169.254.169.254": {}, "fe80::1": {}, "224.0.0.1": {}, "ff02::1": {},
	} {
		addr := netip.MustParseAddr(address)
		if got := Vet(addr, false) == nil; got != want.production {
			t.Errorf("%s: %v, want %v", address, got, want.production)
		}
		if got := Vet(addr, true) == nil; got != want.development {
			t.Errorf("%s with loopback allowed: %v, want %v", address, got, want.development)
		}
	}
}

// What counts is the address that is dialled, whatever name led there.
func TestDialRefusesWhereANameLeads(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if _, err := Dial(false, time.Second)(t.Context(), "tcp", "localhost:"+port); !errors.Is(err, ErrAddress) {
		t.Errorf("%v, want ErrAddress", err)
	}
	conn, err := Dial(true, time.Second)(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
