package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// spread is what repeated measurements of one thing gave.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spreadOf returns the spread of values, of which there is at least one. Of an
// even number the median is the mean of the two in the middle.
func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + median) / 2
	}
	return spread{median, sorted[0], sorted[len(sorted)-1]}
}

// ratios divides each round's first figure by the same round's second one: what
// slows the whole machine for a while is in both. Rounds that lack one are left
// out.
func ratios(of, by []float64) (all []float64) {
	for i := range min(len(of), len(by)) {
		if usable(of[i]) && usable(by[i]) {
			all = append(all, of[i]/by[i])
		}
	}
	return all
}

func usable(value float64) bool { return value > 0 && !math.IsInf(value, 0) && !math.IsNaN(value) }

// quantile returns the value below which a part q of the sorted values lies, by
// the nearest rank.
func quantile[T any](sorted []T, q float64) T {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// digits prints a spread with so many decimals; without the extremes when there
// is only one value.
func (s spread) digits(decimals int) string {
	text := fmt.Sprintf("%.*f", decimals, s.Median)
	if s.Min == s.Max {
		return text
	}
	return fmt.Sprintf("%s (%.*f-%.*f)", text, decimals, s.Min, decimals, s.Max)
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
