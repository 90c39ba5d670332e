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
	const span = 10 * time.Second
	cut := sim.Span{From: 3 * time.Second, Until: 6 * time.Second}
	return []simulation{
		{"100 nodes, 10x uniform", sim.Config{Nodes: 100, Duration: span}, 1.02},
		{"100 nodes, 10x 90-10", sim.Config{Nodes: 100, Duration: span, Skew: 0.9}, 1.05},
		{"10 nodes, 3 cut off for 3 s, then healed", sim.Config{Duration: span, Cut: 3, Partition: cut}, 1.02},
		{"100 nodes, 30 cut off for 3 s, then healed", sim.Config{Nodes: 100, Duration: span, Cut: 30, Partition: cut}, 1.02},
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
		all = append(all, reading{worst, fmt.Sprintf("%v from the start, burst and partition included; worst of %d seeds", s.config.Duration, simulationSeeds)}, reading{value: least})
	}
	return all, nil
}
