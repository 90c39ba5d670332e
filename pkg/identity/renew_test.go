package identity

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestRenewerRenewsAtTwoThirds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, time.Now())
		live := member(t, ca, Dataplane, "n1", time.Now())
		start := time.Now()
		var at []time.Duration
		ctx, cancel := context.WithCancel(t.Context())
		r := &Renewer{
			Live: live,
			Renew: func(_ context.Context, csr []byte) (Issued, error) {
				at = append(at, time.Since(start))
				return ca.Issue(csr, live.Identity(), 0, time.Now())
			},
		}
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		time.Sleep(72 * time.Hour)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(at) != 4 || at[0] < 14*time.Hour || at[0] > 16*time.Hour+time.Second {
			t.Errorf("renewed at %v", at)
		}
		if _, until := live.Validity(); until.Before(time.Now()) {
			t.Error("ran out")
		}
	})
}

func TestRenewerTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, time.Now())
		live := member(t, ca, Dataplane, "n1", time.Now())
		first := live.State().Certificates[0]
		var tries, saved int
		renewed := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		r := &Renewer{
			Live: live,
			Renew: func(_ context.Context, csr []byte) (Issued, error) {
				switch tries++; {
				case tries <= 20:
					return Issued{}, errors.New("unreachable")
				case tries == 21: // another member's certificate
					return ca.Issue(csr, Identity{Dataplane, "n2"}, 0, time.Now())
				}
				return ca.Issue(csr, live.Identity(), 0, time.Now())
			},
			Save: func(State) error {
				saved++
				close(renewed) // twice panics: another member's certificate was saved
				return errors.New("disk full")
			},
		}
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		<-renewed
		synctest.Wait()
		cancel()
		<-done
		if saved != 1 || tries != 22 {
			t.Errorf("%d tries, %d saved", tries, saved)
		}
		if _, until := live.Validity(); until.Before(time.Now()) || string(live.State().Certificates[0]) == string(first) {
			t.Error("not renewed after failures")
		}
	})
}

func TestStateFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "node", "identity")
	if _, err := LoadState(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("empty: %v", err)
	}
	now := time.Now()
	live := member(t, newCA(t, now), Dataplane, "n1", now)
	if err := live.State().Save(dir); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{stateFile: 0o600, authoritiesFile: 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	s, err := LoadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	back, err := NewLive(s)
	if err != nil || back.Identity() != live.Identity() {
		t.Fatal(err)
	}
	own := filepath.Join(dir, stateFile)
	good, _ := os.ReadFile(own)
	for name, damage := range map[string]func() error{
		"readable by others": func() error { return os.Chmod(own, 0o644) },
		"cut":                func() error { return os.WriteFile(own, good[:len(good)/2], 0o600) },
		"no key":             func() error { return os.WriteFile(own, EncodePEM(s.Certificates), 0o600) },
		"trailing text":      func() error { return os.WriteFile(own, append(good, "x"...), 0o600) },
		"empty":              func() error { return os.WriteFile(own, nil, 0o600) },
		"no authorities":     func() error { return os.Remove(filepath.Join(dir, authoritiesFile)) },
	} {
		if err := s.Save(dir); err != nil {
			t.Fatal(err)
		}
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadState(dir); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}
