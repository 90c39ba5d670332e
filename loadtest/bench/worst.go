package main

import (
	"cmp"
	"slices"
	"time"
)

// attempt is one request, when it came and whether it was admitted.
type attempt struct {
	at       time.Duration
	admitted bool
}

// merge puts the attempts of all nodes in order of time.
func merge(nodes [][]attempt) []attempt {
	all := slices.Concat(nodes...)
	slices.SortStableFunc(all, func(a, b attempt) int { return cmp.Compare(a.at, b.at) })
	return all
}

// outcome of a run: what its nodes admitted together, against one bucket that saw
// every request.
type outcome struct {
	// worst is the largest quotient of what was admitted in any second (of every
	// position, not only whole ones) and what one bucket allows in it: the rate,
	// and what it held when the second began.
	worst float64
	// ofAllowed is what was admitted, divided by what one bucket would have.
	ofAllowed         float64
	admitted, offered int
}

// worstSecond judges the attempts after warm, in order of time.
func worstSecond(all []attempt, rate, burst float64, warm time.Duration) outcome {
	var out outcome
	var window []time.Duration // admissions of the last second
	type mark struct {
		at    time.Duration
		level float64
	}
	var levels []mark // of the one bucket, in the last second and the mark before it
	level, last, ideal := burst, time.Duration(0), 0
	for _, a := range all {
		level = min(burst, level+rate*(a.at-last).Seconds())
		last = a.at
		levels = append(levels, mark{a.at, level})
		for len(levels) > 1 && levels[1].at <= a.at-time.Second {
			levels = levels[1:]
		}
		if level >= 1 {
			level--
			if a.at >= warm {
				ideal++
			}
		}
		if a.at >= warm {
			out.offered++
		}
		if !a.admitted {
			continue
		}
		window = append(window, a.at)
		for window[0] <= a.at-time.Second {
			window = window[1:]
		}
		if a.at >= warm {
			out.admitted++
		}
		if a.at-time.Second >= warm {
			out.worst = max(out.worst, float64(len(window))/(rate+levels[0].level))
		}
	}
	out.ofAllowed = float64(out.admitted) / float64(max(1, ideal))
	return out
}
