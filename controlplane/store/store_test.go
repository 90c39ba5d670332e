package store_test

import (
	"testing"

	"go.uber.org/goleak"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/controlplane/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, leftByEtcd()...) }

func TestMemory(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store {
		s := store.NewMemory()
		t.Cleanup(func() { _ = s.Close() })
		return s
	})
}

func TestEmbedded(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, store.Config{Dir: t.TempDir()}) })
}

// open opens a store that the test's end closes.
func open(t *testing.T, cfg store.Config) *store.Etcd {
	t.Helper()
	if cfg.Sealer == nil {
		cfg.Sealer = storetest.Sealer()
	}
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}
