package main

import (
	"math"
	"time"
)

// schedule says when each request is due, whatever becomes of those before it: the
// open loop. It is immutable.
type schedule struct {
	stages []Stage
}

func rateAt(s Stage) (from, to float64) {
	if s.To == nil {
		return s.Rate, s.Rate
	}
	return s.Rate, *s.To
}

// offered is how many requests are due in a stage.
func offered(s Stage) float64 {
	from, to := rateAt(s)
	return (from + to) / 2 * s.For.Seconds()
}

// total is how many requests are due at all.
func (s schedule) total() uint64 {
	sum := 0.0
	for _, stage := range s.stages {
		sum += offered(stage)
	}
	return uint64(math.Ceil(sum - 1e-9))
}

// due returns when request n, counted from 0, is to be sent, from the start of the
// run. Beyond the last it is the end.
func (s schedule) due(n uint64) time.Duration {
	left, begun := float64(n), time.Duration(0)
	for _, stage := range s.stages {
		in := offered(stage)
		if left < in {
			return begun + time.Duration(within(stage, left)*float64(time.Second))
		}
		left -= in
		begun += stage.For
	}
	return begun
}

// within returns after how many seconds of a stage n requests were due: the root of
// from·t + (to-from)/(2·span)·t² = n, in the form that is stable when the slope is
// small.
func within(s Stage, n float64) float64 {
	from, to := rateAt(s)
	slope := (to - from) / s.For.Seconds()
	root := math.Sqrt(max(0, from*from+2*slope*n))
	if from+root == 0 {
		return 0
	}
	return 2 * n / (from + root)
}

// Pace implements vegeta.Pacer.
func (s schedule) Pace(elapsed time.Duration, hits uint64) (wait time.Duration, stop bool) {
	if hits >= s.total() {
		return 0, true
	}
	return max(0, s.due(hits)-elapsed), false
}

// Rate implements vegeta.Pacer.
func (s schedule) Rate(elapsed time.Duration) float64 {
	for _, stage := range s.stages {
		if elapsed < stage.For {
			from, to := rateAt(stage)
			return from + (to-from)*elapsed.Seconds()/stage.For.Seconds()
		}
		elapsed -= stage.For
	}
	return 0
}
