package main

import (
	"context"
	"fmt"
	"time"

	"portcullis.dev/portcullis/dataplane/limit/sim"
)

// simulation is a cluster of real limiters in virtual time.
type simulation struct {
	name   string
	config sim.Config
	worst  float64
}

func simulations() []simulation {
	const second = time.Second
	return []simulation{
		{"100 nodes, 10x uniform", sim.Config{Nodes: 100}, 1.02},
		{"100 nodes, 10x 90-10", sim.Config{Nodes: 100, Skew: 0.9}, 1.05},
		{"10 nodes, 3 cut off for 3 s, then healed", sim.Config{Duration: 8 * second, Cut: 3, Partition: sim.Span{From: 2 * second, Until: 5 * second}}, 1.02},
		{"100 nodes, 30 cut off for 1.5 s, then healed", sim.Config{Nodes: 100, Duration: 5 * second, Cut: 30, Partition: sim.Span{From: 1500 * time.Millisecond, Until: 3 * second}}, 1.02},
	}
}

func simulatedTargets() []target {
	var all []target
	for _, s := range simulations() {
		all = append(all,
			target{fmt.Sprintf("limits, simulated, %s: worst second's admitted ÷ allowed", s.name), atMost, s.worst, ratio},
			target{fmt.Sprintf("limits, simulated, %s: admitted of the allowed", s.name), atLeast, 0.98, ratio})
	}
	return all
}

// simulationSeeds is how many runs each scenario has; the worst of them counts.
const simulationSeeds = 2

func measureSimulated(ctx context.Context) ([]reading, error) {
	var all []reading
	for _, s := range simulations() {
		worst, least := 0.0, 2.0
		for seed := range simulationSeeds {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			s.config.Seed = uint64(seed)
			result := sim.Run(s.config)
			worst, least = max(worst, result.WorstSecondRatio), min(least, result.AdmittedRatio)
		}
		all = append(all, reading{worst, fmt.Sprintf("the burst included; worst of %d seeds", simulationSeeds)}, reading{value: least})
	}
	return all, nil
}
