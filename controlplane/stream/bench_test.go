package stream

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// BenchmarkFanout1000 publishes to 1,000 streams, ten to a connection, over TCP:
// from Publish to the last node that has the change, as p50-ms and p99-ms.
func BenchmarkFanout1000(b *testing.B) { fanout(b, 1000, 100) }

func fanout(b *testing.B, streams, conns int) {
	p := newPlane(b, nil)
	p.start(b, 1, application("a", "1"))
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = p.server.Serve(lis) }()
	arrived := make(chan int64, streams)
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer running.Wait()
	defer cancel()
	var clients []controlv1.ControlServiceClient
	for range conns {
		conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		clients = append(clients, controlv1.NewControlServiceClient(conn))
	}
	for i := range streams {
		s, err := clients[i%conns].Follow(metadata.AppendToOutgoingContext(ctx, "node", fmt.Sprint("n", i)))
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Hello{Hello: &controlv1.Hello{}}}); err != nil {
			b.Fatal(err)
		}
		running.Go(func() { follow(s, arrived) })
	}
	all := func() {
		for range streams {
			<-arrived
		}
	}
	all()
	p.await(b, at(1), streams)
	var took []time.Duration
	revision := int64(1)
	for b.Loop() {
		revision++
		c := p.source.change(revision, application("a", fmt.Sprint(revision)))
		began := time.Now()
		p.publish(b, c)
		all()
		took = append(took, time.Since(began))
		p.await(b, at(revision), streams)
	}
	slices.Sort(took)
	ms := func(q float64) float64 {
		return took[min(len(took)-1, int(q*float64(len(took))))].Seconds() * 1000
	}
	b.ReportMetric(ms(0.5), "p50-ms")
	b.ReportMetric(ms(0.99), "p99-ms")
}

// follow applies whatever comes at once.
func follow(s grpc.BidiStreamingClient[controlv1.FollowRequest, controlv1.FollowResponse], arrived chan<- int64) {
	for {
		m, err := s.Recv()
		if err != nil {
			return
		}
		u := m.GetUpdate()
		if !u.GetLast() {
			continue
		}
		arrived <- u.GetVersion().GetRevision()
		if s.Send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Report{Report: &controlv1.Report{
			Version: u.GetVersion(), Running: u.GetVersion(), Digest: u.GetDigest(),
		}}}) != nil {
			return
		}
	}
}
