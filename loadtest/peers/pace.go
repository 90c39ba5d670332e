package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// paced is what an open-loop sender saw.
type paced struct {
	Requests int           `json:"requests"`
	P50      time.Duration `json:"p50_ns"`
	P99      time.Duration `json:"p99_ns"`
}

// pace sends GETs at a fixed rate, whatever the answers take, and prints what it
// saw as JSON. Latency counts from when a request was due: a gateway that stalls
// cannot hide the requests that it kept from being sent (coordinated omission).
func pace(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("pace", flag.ContinueOnError)
	address := flags.String("address", "", "address of the gateway")
	path := flags.String("path", "/", "path of every request")
	rate := flags.Float64("rate", 1000, "requests a second, over all connections")
	connections := flags.Int("connections", 64, "connections")
	duration := flags.Duration("duration", 5*time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *rate <= 0 || *connections < 1 {
		return errors.New("-rate and -connections must be positive")
	}
	ctx, cancel := context.WithTimeout(ctx, *duration+20*time.Second)
	defer cancel()
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", *path, *address)
	interval := time.Duration(float64(*connections) / *rate * float64(time.Second))
	began := time.Now().Add(50 * time.Millisecond)
	took := make([][]time.Duration, *connections)
	failed := make([]error, *connections)
	var running sync.WaitGroup
	for i := range *connections {
		running.Go(func() {
			// The connections take turns.
			first := began.Add(interval * time.Duration(i) / time.Duration(*connections))
			took[i], failed[i] = paceOne(ctx, *address, request, first, interval, *duration)
		})
	}
	running.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	all := slices.Concat(took...)
	if len(all) == 0 {
		return errors.New("nothing was sent")
	}
	slices.Sort(all)
	return json.NewEncoder(out).Encode(paced{len(all), quantile(all, 0.5), quantile(all, 0.99)})
}

// paceOne sends on one connection.
func paceOne(ctx context.Context, address string, request []byte, first time.Time, interval, duration time.Duration) (took []time.Duration, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	for due := first; due.Sub(first) < duration; due = due.Add(interval) {
		time.Sleep(time.Until(due))
		if _, err := conn.Write(request); err != nil {
			return nil, err
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return nil, err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("answered %s", resp.Status)
		}
		took = append(took, time.Since(due))
	}
	return took, nil
}
