package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// Limits of the embedded server: it has one client, which we wrote, so a commit
// may be larger than etcd's defaults before it has to be staged.
const (
	embeddedTxnOps       = 4096
	embeddedRequestBytes = 4 << 20
	embeddedQuota        = 8 << 30
)

// embedded is a single-member etcd inside this process. It listens on no socket:
// the client calls it directly, and ranges that stream go over an in-memory
// connection.
type embedded struct {
	etcd   *embed.Etcd
	server *grpc.Server
	served chan struct{}
	// direct answers gets, puts, transactions, leases and watches; streams is for
	// the range stream, which a direct client cannot do.
	direct, streams *clientv3.Client
}

func startEmbedded(ctx context.Context, cfg Config) (*embedded, error) {
	e := &embedded{served: make(chan struct{})}
	ec, err := embeddedConfig(cfg)
	if err != nil {
		return nil, err
	}
	if e.etcd, err = embed.StartEtcd(ec); err != nil {
		return nil, fmt.Errorf("store: starting embedded etcd in %s: %w", cfg.Dir, err)
	}
	select {
	case <-e.etcd.Server.ReadyNotify():
	case <-e.etcd.Server.StopNotify():
		e.etcd.Close()
		return nil, fmt.Errorf("store: embedded etcd in %s stopped while starting", cfg.Dir)
	case <-ctx.Done():
		e.etcd.Close()
		return nil, fmt.Errorf("store: embedded etcd in %s did not become ready: %w", cfg.Dir, ctx.Err())
	}
	e.direct = v3client.New(e.etcd.Server)
	if err := e.serve(cfg.zap()); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

func embeddedConfig(cfg Config) (*embed.Config, error) {
	dir := filepath.Join(cfg.Dir, "etcd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	ec := embed.NewConfig()
	ec.Name = "portcullis"
	ec.Dir = dir
	ec.InitialCluster = ec.InitialClusterFromName(ec.Name)
	ec.ListenPeerUrls, ec.ListenClientUrls, ec.AdvertiseClientUrls = nil, nil, nil
	// One member elects itself; nothing is gained by waiting for others.
	ec.TickMs, ec.ElectionMs = 10, 100
	ec.MaxTxnOps = embeddedTxnOps
	ec.MaxRequestBytes = embeddedRequestBytes
	ec.QuotaBackendBytes = embeddedQuota
	if cfg.Quota > 0 {
		ec.QuotaBackendBytes = cfg.Quota
	}
	ec.AutoCompactionMode = embed.CompactorModeRevision
	ec.AutoCompactionRetention = "20000"
	ec.WatchProgressNotifyInterval = 10 * time.Second
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(cfg.zap())
	return ec, nil
}

// serve puts the server's gRPC service on an in-memory listener.
func (e *embedded) serve(lg zapLogger) error {
	pipe := bufconn.Listen(1 << 20)
	e.server = v3rpc.Server(e.etcd.Server, nil, nil)
	go func() {
		defer close(e.served)
		_ = e.server.Serve(pipe) // ends with Stop; nothing else can fail on a pipe
	}()
	var err error
	e.streams, err = clientv3.New(clientv3.Config{
		Endpoints: []string{"passthrough:///embedded"},
		Logger:    lg,
		DialOptions: []grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return pipe.DialContext(ctx)
			}),
		},
	})
	if err != nil {
		return fmt.Errorf("store: connecting to embedded etcd: %w", err)
	}
	return nil
}

// close ends the server and waits until it has ended.
func (e *embedded) close() error {
	var errs []error
	if e.streams != nil {
		errs = append(errs, e.streams.Close())
	}
	if e.direct != nil {
		// A direct client has no connection: all that Close does is end its watches
		// and leases, and report its own context as cancelled.
		_ = e.direct.Close()
	}
	if e.server != nil {
		e.server.Stop()
		<-e.served
	}
	e.etcd.Close()
	<-e.etcd.Server.StopNotify()
	return errors.Join(errs...)
}
