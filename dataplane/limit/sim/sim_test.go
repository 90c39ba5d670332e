package sim

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bound is what a scenario must keep. Ratios count the burst and every position
// of the second; R 1000/s and B 100 unless the scenario says otherwise.
type bound struct {
	name            string
	config          Config
	worst           float64 // at most
	least, most     float64 // AdmittedRatio
	shares, shareOf float64 // LeastShare at least, MostShare at most; 0: any
}

func TestScenarios(t *testing.T) {
	const ms = time.Millisecond
	rough := func(c Config) Config {
		c.Loss, c.Duplicate, c.Jitter = 0.1, 0.1, 10*ms
		return c
	}
	for _, b := range []bound{
		{name: "1 node", config: Config{Nodes: 1}, worst: 1.002, least: 0.999, most: 1.001},
		{name: "2 nodes", config: Config{Nodes: 2}, worst: 1.02, least: 0.98, most: 1.01, shares: 0.9, shareOf: 1.1},
		{name: "3 nodes", config: Config{Nodes: 3}, worst: 1.02, least: 0.98, most: 1.01, shares: 0.9, shareOf: 1.1},
		{name: "10 nodes", config: Config{}, worst: 1.02, least: 0.98, most: 1.01, shares: 0.9, shareOf: 1.1},
		{name: "many nodes", config: Config{Nodes: many}, worst: 1.02, least: 0.98, most: 1.01, shares: 0.7, shareOf: 1.3},
		{name: "2 nodes, 90/10", config: Config{Nodes: 2, Skew: 0.9}, worst: 1.05, least: 0.98, most: 1.01, shares: 0.8, shareOf: 1.2},
		{name: "3 nodes, 90/10", config: Config{Nodes: 3, Skew: 0.9}, worst: 1.05, least: 0.98, most: 1.01, shares: 0.8, shareOf: 1.2},
		{name: "10 nodes, 90/10", config: Config{Skew: 0.9}, worst: 1.05, least: 0.98, most: 1.01, shares: 0.7},
		{name: "many nodes, 90/10", config: Config{Nodes: many, Skew: 0.9}, worst: 1.05, least: 0.98, most: 1.01, shares: 0.7},
		{name: "90/10 that moves on", config: Config{Skew: 0.9, Shift: 700 * ms}, worst: 1.05, least: 0.97, most: 1.01},
		{name: "rough bus", config: rough(Config{}), worst: 1.02, least: 0.98, most: 1.01},
		{name: "rough bus, 90/10", config: rough(Config{Skew: 0.9}), worst: 1.05, least: 0.98, most: 1.01},
		{name: "rough bus, 3 nodes", config: rough(Config{Nodes: 3}), worst: 1.02, least: 0.98, most: 1.01},
		{name: "half the limit", config: Config{Offered: 0.5}, worst: 1, least: 1, most: 1},
		{name: "at the limit", config: Config{Offered: 1}, worst: 1.02, least: 0.97, most: 1.01},
		{name: "a little over", config: Config{Offered: 1.2}, worst: 1.02, least: 0.97, most: 1.01},
		{name: "100x", config: Config{Rate: 200, Burst: 200, Offered: 100, Duration: 2 * time.Second}, worst: 1.05, least: 0.98, most: 1.02},
		{name: "partition, split", config: Config{Duration: 4 * time.Second, Cut: 3, Partition: Span{1500 * ms, 3000 * ms}},
			worst: 1.02, least: 0.98, most: 1.01},
		{name: "crash and rejoin", config: Config{Duration: 4 * time.Second, Crash: Span{500 * ms, 2500 * ms}},
			worst: 1.03, least: 0.93, most: 1.01}, // split: the missing node's tenth is not spent
		{name: "hand-over of the only node", config: Config{Nodes: 2, HandOver: Span{1 * ms, 1500 * ms}, Duration: 3 * time.Second},
			worst: 1.02, least: 0.98, most: 1.01},
		{name: "hand-over in the middle", config: Config{Nodes: 2, HandOver: Span{1000 * ms, 2000 * ms}, Duration: 3 * time.Second},
			worst: 1.02, least: 0.98, most: 1.01},
		{name: "hand-over of one of three", config: Config{Nodes: 4, HandOver: Span{1000 * ms, 2000 * ms}, Duration: 3 * time.Second},
			worst: 1.02, least: 0.98, most: 1.01},
		{name: "hand-over of one of three, large burst", config: Config{Nodes: 4, Burst: 3000, HandOver: Span{1500 * ms, 2000 * ms}, Duration: 3 * time.Second},
			worst: 1.02, least: 0.98, most: 1.01},
		// Slow limits: the ratio moves in whole requests.
		{name: "100 a second", config: Config{Rate: 100, Burst: 100, Duration: 5 * time.Second}, worst: 1.06, least: 0.98, most: 1.02},
		{name: "10 a second", config: Config{Rate: 10, Burst: 10, Duration: 10 * time.Second}, worst: 1.4, least: 0.97, most: 1.02, shares: 0.2},
		{name: "10 a second, 90/10", config: Config{Rate: 10, Burst: 10, Skew: 0.9, Duration: 10 * time.Second}, worst: 1.4, least: 0.97, most: 1.02},
		{name: "1 a second, no burst", config: Config{Rate: 1, Burst: 1, Duration: 10 * time.Second}, worst: 2, least: 0.7, most: 1.2},
	} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			if b.config.Duration == 0 {
				b.config.Duration = span
			}
			r := Run(b.config)
			t.Log(r)
			if r.WorstSecondRatio > b.worst {
				t.Errorf("worst second %.4f, want at most %v", r.WorstSecondRatio, b.worst)
			}
			if r.AdmittedRatio < b.least || r.AdmittedRatio > b.most {
				t.Errorf("admitted %.4f of what one bucket admits, want %v to %v", r.AdmittedRatio, b.least, b.most)
			}
			if b.shares > 0 && r.LeastShare < b.shares || b.shareOf > 0 && r.MostShare > b.shareOf {
				t.Errorf("shares %.3f to %.3f, want within %v to %v", r.LeastShare, r.MostShare, b.shares, b.shareOf)
			}
		})
	}
}

// With open, each side of a partition admits the full rate; nothing is owed for
// it afterwards.
func TestOpenPartition(t *testing.T) {
	c := Config{Duration: 8 * time.Second, Cut: 5, Partition: Span{2 * time.Second, 5 * time.Second}, OnPartition: configv1.OnPartition_ON_PARTITION_OPEN}
	r := Run(c)
	t.Log(r, r.PerSecond)
	// A second passes before silence counts as a partition.
	if got := r.PerSecond[4]; got < 1900 || got > 2050 {
		t.Errorf("two sides admitted %d in a second of the partition, want about 2000", got)
	}
	if got := r.PerSecond[7]; got < 970 || got > 1030 {
		t.Errorf("admitted %d in a second long after it, want about 1000", got)
	}
	if got := r.PerSecond[5]; got < 900 {
		t.Errorf("admitted %d in the second after it, want the debt forgiven", got)
	}
}

// Many seeds, for the two figures that the design promises.
func TestSeeds(t *testing.T) {
	for seed := range uint64(seeds) {
		for _, skew := range []float64{0, 0.9} {
			r := Run(Config{Seed: seed + 1, Skew: skew, Duration: 3 * time.Second})
			limit := 1.02
			if skew > 0 {
				limit = 1.05
			}
			if r.WorstSecondRatio > limit || r.AdmittedRatio < 0.98 {
				t.Errorf("seed %d, skew %v: %v", seed+1, skew, r)
			}
		}
	}
}

func TestDeterministic(t *testing.T) {
	c := Config{Nodes: 5, Skew: 0.7, Loss: 0.05, Duplicate: 0.05, Jitter: 5 * time.Millisecond, Duration: time.Second, Seed: 7}
	if a, b := Run(c).String(), Run(c).String(); a != b {
		t.Errorf("two runs differ:\n%s\n%s", a, b)
	}
}
