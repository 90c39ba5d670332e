package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/config"
	storev1 "portcullis.dev/portcullis/proto/store/v1"
)

// Config says which etcd to use. Exactly one of Dir and Endpoints is set.
type Config struct {
	// Dir holds an embedded single-member etcd, in its subfolder etcd.
	Dir string
	// Endpoints of an external cluster, host:port or URLs.
	Endpoints []string
	// TLS toward Endpoints; nil speaks in clear.
	TLS *tls.Config
	// Username and Password of etcd's own authentication; empty: none.
	Username, Password string
	// Prefix of all keys; "/portcullis/" when empty. Ends with '/'.
	Prefix string
	// Sealer for what is secret; required.
	Sealer Sealer
	// Restored says that the store was restored from a backup: Open begins a new
	// epoch. A restore that makes a new etcd cluster is noticed without.
	Restored bool
	// HistoryLimit is how many commits are kept for History and At; default 10000.
	HistoryLimit int
	// ProofInterval is how often a Watch proves that it is current; default 200 ms.
	ProofInterval time.Duration
	// Quota of the embedded server in bytes; default 8 GiB.
	Quota int64
	// Logger; nil discards.
	Logger *slog.Logger
}

// Etcd is the Store on etcd. Use Open.
type Etcd struct {
	cfg   Config
	log   *slog.Logger
	keys  layout
	codec codec
	// Limits of one transaction: operations, and bytes of its values.
	maxOps, maxBytes int

	client *clientv3.Client
	// streams is the client for range streams; client itself when external.
	streams  *clientv3.Client
	embedded *embedded

	identity atomic.Pointer[identity]
	leases   leases

	// Owned by Open and Close: what runs in the background.
	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup
	closed sync.Once
	err    error
	// wake is a level trigger for maintain.
	wake chan struct{}
}

// identity is which history the revisions belong to. Commits compare revision,
// so that none is made under another identity than its caller knows.
type identity struct {
	epoch, cluster uint64
	revision       int64
}

// Limits of a transaction on an etcd with default settings (128 operations,
// 1.5 MiB), less what a commit writes besides its resources.
const (
	externalTxnOps   = 128
	externalTxnBytes = 1_200 << 10
	// maxResource is the largest stored form of one resource: before and after of
	// one edit must fit into one piece.
	maxResource = 600 << 10
	// pieceBytes is how much a piece of a staged commit holds.
	pieceBytes = 1 << 20
)

// Open connects to etcd, or starts the embedded one, and waits until it answers
// or ctx ends. ctx bounds only the opening.
func Open(ctx context.Context, cfg Config) (*Etcd, error) {
	s, err := prepare(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.done.Go(func() { s.maintain(s.ctx) })
	return s, nil
}

// prepare is Open without what runs in the background.
func prepare(ctx context.Context, cfg Config) (*Etcd, error) {
	if cfg.Sealer == nil {
		return nil, fmt.Errorf("%w: a store needs a Sealer", ErrInvalid)
	}
	if (cfg.Dir == "") == (len(cfg.Endpoints) == 0) {
		return nil, fmt.Errorf("%w: a store needs either a directory or endpoints", ErrInvalid)
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "/portcullis/"
	}
	if !strings.HasSuffix(cfg.Prefix, "/") {
		return nil, fmt.Errorf("%w: prefix %q does not end with '/'", ErrInvalid, cfg.Prefix)
	}
	if cfg.HistoryLimit == 0 {
		cfg.HistoryLimit = 10_000
	}
	if cfg.ProofInterval == 0 {
		cfg.ProofInterval = 200 * time.Millisecond
	}
	s := &Etcd{
		cfg: cfg, log: cfg.Logger, keys: layout{cfg.Prefix}, codec: newCodec(cfg.Sealer),
		wake: make(chan struct{}, 1),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.connect(ctx); err != nil {
		s.cancel()
		return nil, err
	}
	if err := s.identify(ctx, cfg.Restored); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Etcd) connect(ctx context.Context) error {
	if s.cfg.Dir != "" {
		e, err := startEmbedded(ctx, s.cfg)
		if err != nil {
			return err
		}
		s.embedded, s.client, s.streams = e, e.direct, e.streams
		s.maxOps, s.maxBytes = embeddedTxnOps-16, embeddedRequestBytes/4*3
		return nil
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: s.cfg.Endpoints, TLS: s.cfg.TLS,
		Username: s.cfg.Username, Password: s.cfg.Password,
		Context: s.ctx, Logger: s.cfg.zap(),
		DialTimeout: 5 * time.Second,
		// A member that vanished without a word is noticed in seconds.
		DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		PermitWithoutStream: true,
	})
	if err != nil {
		return fmt.Errorf("store: connecting to etcd: %w", explain(err))
	}
	s.client, s.streams = c, c
	s.maxOps, s.maxBytes = externalTxnOps-16, externalTxnBytes
	return nil
}

// identify reads which epoch the store is in, and begins one when the store is
// new or was restored.
func (s *Etcd) identify(ctx context.Context, restored bool) error {
	for {
		resp, err := s.client.Get(ctx, s.keys.identity())
		if err != nil {
			return fmt.Errorf("store: asking etcd: %w", explain(err))
		}
		var id storev1.Identity
		var at int64
		if len(resp.Kvs) > 0 {
			at = resp.Kvs[0].ModRevision
			if err := proto.Unmarshal(resp.Kvs[0].Value, &id); err != nil {
				return fmt.Errorf("store: decoding the store's identity: %w", err)
			}
		}
		if id.Epoch > 0 && id.Cluster == resp.Header.ClusterId && !restored {
			s.identity.Store(&identity{id.Epoch, id.Cluster, at})
			return nil
		}
		next := &storev1.Identity{Epoch: id.Epoch + 1, Cluster: resp.Header.ClusterId}
		value, err := proto.Marshal(next)
		if err != nil {
			return fmt.Errorf("store: encoding the store's identity: %w", err)
		}
		// The lanes' marks are written along, so that a new epoch has a version of
		// its own from the start and no write planned in the old one passes.
		txn, err := s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(s.keys.identity()), "=", at)).
			Then(clientv3.OpPut(s.keys.identity(), string(value)), s.touch(s.keys.tip()),
				s.touch(s.keys.head()), s.touch(s.keys.keys()), s.touch(s.keys.deny())).
			Commit()
		if err != nil {
			return fmt.Errorf("store: beginning an epoch: %w", explain(err))
		}
		if txn.Succeeded {
			s.log.Info("epoch begun", "epoch", next.Epoch, "revision", txn.Header.Revision)
			s.identity.Store(&identity{next.Epoch, next.Cluster, txn.Header.Revision})
			return nil
		}
		restored = false // another replica has just done it
	}
}

// touch writes a mark; only its mod revision matters.
func (s *Etcd) touch(key string) clientv3.Op { return clientv3.OpPut(key, "") }

func (s *Etcd) version(revision int64) config.Version {
	return config.Version{Epoch: s.identity.Load().epoch, Revision: revision}
}

// sameCluster fails when etcd was replaced under our feet, after it has begun the
// new epoch.
func (s *Etcd) sameCluster(ctx context.Context, cluster uint64) error {
	if cluster == s.identity.Load().cluster {
		return nil
	}
	if err := s.identify(ctx, false); err != nil {
		return err
	}
	return fmt.Errorf("%w: etcd was restored; epoch %d began", ErrCompacted, s.identity.Load().epoch)
}

// Close ends what runs in the background, the connection, and the embedded
// server, and returns when all have ended.
func (s *Etcd) Close() error {
	s.closed.Do(func() {
		s.cancel()
		s.done.Wait()
		if s.embedded != nil {
			s.err = s.embedded.close()
			return
		}
		if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
			s.err = fmt.Errorf("store: closing: %w", err)
		}
	})
	return s.err
}
