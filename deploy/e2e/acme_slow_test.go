//go:build slow

package e2e_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"
)

// A certificate is renewed before it expires, by a control plane that has not
// ordered it, and no handshake fails meanwhile.
func TestSlowCertificateIsRenewedByAnotherStart(t *testing.T) {
	h, authority := startWithAuthority(t, 30*time.Second)
	h.apply(fmt.Sprintf(site, authority.Directory, "api.shop.example", authority.CA))
	var first *x509.Certificate
	h.until("a handshake", func() (err error) {
		first, err = h.leaf(0, "api.shop.example", authority.Roots)
		return err
	})
	h.must("stopping the control plane", h.StopControl())
	h.must("starting the control plane", h.StartControl(within(t)))
	h.until("another certificate", func() error {
		next, err := h.leaf(1, "api.shop.example", authority.Roots)
		if err != nil {
			t.Fatalf("a handshake failed: %v", err)
		}
		if next.Equal(first) {
			err = errors.New("it is the first one still")
		}
		return err
	})
	if !time.Now().Before(first.NotAfter) {
		t.Errorf("renewed after %s", first.NotAfter)
	}
}
