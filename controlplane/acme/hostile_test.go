package acme

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// A certificate that lasts for centuries is not due from the start: a Duration holds
// no more than 292 years.
func TestCertificatesForCenturies(t *testing.T) {
	now := time.Now()
	for _, years := range []int{100, 147, 200, 293, 7000} {
		leaf := &x509.Certificate{NotBefore: now, NotAfter: now.AddDate(years, 0, 0)}
		issued := &configv1.IssuedCertificate{IssuedAt: timestamppb.New(now)}
		schedule(issued, leaf, nil)
		if at := issued.RefreshAt.AsTime(); at.Before(now.AddDate(60, 0, 0)) || at.After(leaf.NotAfter) || issued.RefreshAt.CheckValid() != nil {
			t.Errorf("for %d years: renewed at %s", years, at)
		}
	}
}

// An authority that issues for seconds has no order placed every second.
func TestCertificatesForSeconds(t *testing.T) {
	k := New(Config{})
	now := time.Now()
	spec := &configv1.ACME{Hostnames: []string{"a.example"}}
	issued := &configv1.IssuedCertificate{Ordered: proto.CloneOf(spec), IssuedAt: timestamppb.New(now)}
	schedule(issued, &x509.Certificate{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Second)}, nil)
	source := Source{Certificate: &configv1.Certificate{Acme: spec}, Issued: issued}
	if wait := k.due(source, now); wait < 4*time.Minute {
		t.Errorf("ordered again after %s", wait)
	}
	// What it was ordered for has changed: that is not the authority's doing.
	spec.Hostnames = []string{"b.example"}
	if wait := k.due(source, now); wait != 0 {
		t.Errorf("another order after %s", wait)
	}
}

// A certificate that the configuration refuses is a failed order like any other: it
// is told, and the next one waits. Otherwise the authority would be asked for one
// after the other, and nobody would hear why none is shown.
func TestACertificateThatIsRefusedIsAFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 90*24*time.Hour)
	w.refuse = func(issued *configv1.IssuedCertificate) error {
		if issued.Certificate == "" {
			return nil
		}
		return config.Problems{{Key: IssuedKey(key), Path: "spec.certificate", Reason: "certificate 3 certifies none of those before it"}}
	}
	w.replica("control-1", nil)
	failed := w.until("a failure", func(i *configv1.IssuedCertificate) bool { return i.GetFailures() > 0 })
	if !strings.Contains(failed.Problem, "certifies none") || failed.Certificate != "" || len(failed.Challenges) > 0 || time.Until(failed.RefreshAt.AsTime()) < time.Minute {
		t.Errorf("written as %v", failed)
	}
}
