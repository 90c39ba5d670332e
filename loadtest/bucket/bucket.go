// Package bucket judges what a cluster's nodes admitted together against the one
// bucket that would have seen every request. It must not know how they were asked.
package bucket

import (
	"cmp"
	"slices"
	"time"
)

// Attempt is one request, when it came and whether it was admitted.
type Attempt struct {
	// At counts from the start of the run.
	At       time.Duration
	Admitted bool
}

// Merge puts the attempts of all nodes in order of time.
func Merge(nodes [][]Attempt) []Attempt {
	all := slices.Concat(nodes...)
	slices.SortStableFunc(all, func(a, b Attempt) int { return cmp.Compare(a.At, b.At) })
	return all
}

// Outcome of a run: what its nodes admitted together, against one bucket that saw
// every request.
type Outcome struct {
	// Worst is the largest quotient of what was admitted in any second (of every
	// position, not only whole ones) and what one bucket allows in it: the rate,
	// and what it held when the second began.
	Worst float64
	// OfAllowed is what was admitted, divided by what one bucket would have.
	OfAllowed         float64
	Admitted, Offered int
}

// Judge judges the attempts after warm, in order of time, by a bucket that is
// refilled with rate a second up to burst.
func Judge(all []Attempt, rate, burst float64, warm time.Duration) Outcome {
	var out Outcome
	var window []time.Duration // admissions of the last second
	type mark struct {
		at    time.Duration
		level float64
	}
	var levels []mark // of the one bucket, in the last second and the mark before it
	level, last, ideal := burst, time.Duration(0), 0
	for _, a := range all {
		level = min(burst, level+rate*(a.At-last).Seconds())
		last = a.At
		levels = append(levels, mark{a.At, level})
		for len(levels) > 1 && levels[1].at <= a.At-time.Second {
			levels = levels[1:]
		}
		if level >= 1 {
			level--
			if a.At >= warm {
				ideal++
			}
		}
		if a.At >= warm {
			out.Offered++
		}
		if !a.Admitted {
			continue
		}
		window = append(window, a.At)
		for window[0] <= a.At-time.Second {
			window = window[1:]
		}
		if a.At >= warm {
			out.Admitted++
		}
		if a.At-time.Second >= warm {
			out.Worst = max(out.Worst, float64(len(window))/(rate+levels[0].level))
		}
	}
	out.OfAllowed = float64(out.Admitted) / float64(max(1, ideal))
	return out
}
