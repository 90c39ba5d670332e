package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/dataplane/limit"
	"portcullis.dev/portcullis/loadtest/bucket"
	"portcullis.dev/portcullis/pkg/bus"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	limitRate    = 1000.0 // R, requests a second
	limitBurst   = 100.0  // B
	limitOffered = 10.0   // times R, over all nodes
	// limitWarm is not looked at: nodes find each other, and the burst is spent.
	limitWarm = 2 * time.Second
	limitSpan = 6 * time.Second
)

// limitExperiments are clusters of limiters in this process, on a real NATS
// server over TCP, wired as a node wires its own.
func limitExperiments() []experiment {
	var list []experiment
	for _, nodes := range []int{2, 3, 10} {
		for _, load := range []struct {
			name  string
			skew  float64
			worst float64
		}{{"uniform", 0, 1.02}, {"90-10", 0.9, 1.05}} {
			list = append(list, experiment{
				fmt.Sprintf("limits-%d-%s", nodes, load.name),
				[]target{
					{fmt.Sprintf("limits, %d nodes on NATS, 10x %s: worst second's admitted ÷ allowed", nodes, load.name), atMost, load.worst, ratio},
					{fmt.Sprintf("limits, %d nodes on NATS, 10x %s: admitted of the allowed", nodes, load.name), atLeast, 0.98, ratio},
				},
				func(ctx context.Context) ([]reading, error) { return measureLimits(ctx, nodes, load.skew) },
			})
		}
	}
	return list
}

// limitNode is one node's limiter on the bus.
type limitNode struct {
	limiter *limit.Limiter
	bus     bus.Bus
	// weight is the part of the load that comes here.
	weight float64
	seen   []bucket.Attempt
}

func measureLimits(ctx context.Context, nodes int, skew float64) (readings []reading, err error) {
	server, err := bus.StartEmbedded(bus.ServerConfig{Listen: "127.0.0.1:0", Plaintext: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	members := make([]*limitNode, nodes)
	for i := range members {
		if members[i], err = joinLimits(ctx, server.URL(), i, nodes, skew); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, members[i].bus.Close()) }()
	}
	life, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	for _, m := range members {
		running.Go(func() { _ = m.limiter.Run(life) })
	}
	var load sync.WaitGroup
	start := time.Now()
	for i, m := range members {
		load.Go(func() { m.offer(life, start, uint64(i)) })
	}
	load.Wait()
	stop()
	running.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	all := make([][]bucket.Attempt, nodes)
	for i, m := range members {
		all[i] = m.seen
	}
	v := bucket.Judge(bucket.Merge(all), limitRate, limitBurst, limitWarm)
	note := fmt.Sprintf("R %g/s, B %g, %.0f s after %.0f s; %d of %d admitted", limitRate, limitBurst, limitSpan.Seconds(), limitWarm.Seconds(), v.Admitted, v.Offered)
	return []reading{{v.Worst, note}, {v.OfAllowed, ""}}, nil
}

// joinLimits wires a limiter to the bus as dataplane does.
func joinLimits(ctx context.Context, url string, i, nodes int, skew float64) (*limitNode, error) {
	name := fmt.Sprintf("node-%d", i+1)
	key := &controlv1.BusKey{Id: 1, Key: make([]byte, 32)}
	b, err := bus.Connect(ctx, bus.Config{Name: name, Boot: 1, NATS: bus.NATSConfig{URLs: []string{url}, Plaintext: true}, Keys: []*controlv1.BusKey{key}})
	if err != nil {
		return nil, err
	}
	m := &limitNode{bus: b, weight: weightOf(i, nodes, skew)}
	m.limiter = limit.New(limit.Config{
		Node: name, Boot: 1, Publish: func(s *busv1.Spent) error { return b.Publish(bus.Spent, s) },
		AskOwner: func(ctx context.Context, node string, ask *busv1.Ask) (*busv1.Answer, error) {
			answer := &busv1.Answer{}
			return answer, b.Ask(ctx, bus.AskOf(node), ask, answer)
		},
	})
	_, err = b.Subscribe(bus.Spent, func(from bus.Sender, s proto.Message) {
		m.limiter.Receive(from.Name, from.Boot, s.(*busv1.Spent), time.Now())
	})
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return m, nil
}

// weightOf is the part of the load that node i of n gets: the same each, or with
// a skew that part on the busiest tenth of them, at least on one.
func weightOf(i, n int, skew float64) float64 {
	if skew == 0 {
		return 1 / float64(n)
	}
	few := max(1, n/10)
	if i < few {
		return skew / float64(few)
	}
	return (1 - skew) / float64(n-few)
}

// offer sends requests as a Poisson process, open loop: what the machine held up
// comes late, but it comes.
func (m *limitNode) offer(ctx context.Context, start time.Time, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))
	mean := float64(time.Second) / (m.weight * limitOffered * limitRate)
	key := limit.KeyOf("bench", "limits")
	rate := limit.Rate{PerSecond: limitRate, Burst: limitBurst, ID: 1}
	m.seen = make([]bucket.Attempt, 0, int(1.2*(limitWarm+limitSpan).Seconds()*m.weight*limitOffered*limitRate)+1000)
	for due := time.Duration(0); due < limitWarm+limitSpan && ctx.Err() == nil; due += time.Duration(random.ExpFloat64() * mean) {
		if wait := due - time.Since(start); wait > 0 {
			time.Sleep(wait)
		}
		now := time.Now()
		m.seen = append(m.seen, bucket.Attempt{At: now.Sub(start), Admitted: m.limiter.Spend(key, rate, 1, now).Granted})
	}
}
