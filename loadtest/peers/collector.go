package main

import (
	"context"
	"net"

	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// collector takes the node's traces and metrics and drops them: that they are
// made and sent is part of what a request costs.
type collector struct {
	server  *grpc.Server
	address string
	served  chan struct{}
}

type traces struct {
	tracepb.UnimplementedTraceServiceServer
}

func (traces) Export(context.Context, *tracepb.ExportTraceServiceRequest) (*tracepb.ExportTraceServiceResponse, error) {
	return &tracepb.ExportTraceServiceResponse{}, nil
}

type metrics struct {
	metricspb.UnimplementedMetricsServiceServer
}

func (metrics) Export(context.Context, *metricspb.ExportMetricsServiceRequest) (*metricspb.ExportMetricsServiceResponse, error) {
	return &metricspb.ExportMetricsServiceResponse{}, nil
}

func startCollector() (*collector, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &collector{server: grpc.NewServer(), address: listener.Addr().String(), served: make(chan struct{})}
	tracepb.RegisterTraceServiceServer(c.server, traces{})
	metricspb.RegisterMetricsServiceServer(c.server, metrics{})
	go func() {
		defer close(c.served)
		_ = c.server.Serve(listener) // It ends when it is stopped.
	}()
	return c, nil
}

func (c *collector) url() string { return "http://" + c.address }

func (c *collector) stop() {
	c.server.Stop()
	<-c.served
}
