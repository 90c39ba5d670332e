package main

import "time"

// slice is what one load of one gateway gave.
type slice struct {
	Requests int `json:"requests"`
	// Lasted is how long requests were sent; CPU the gateway's processor time in it,
	// of which System is the kernel's.
	Lasted time.Duration `json:"lasted_ns"`
	CPU    time.Duration `json:"cpu_ns"`
	System time.Duration `json:"system_ns"`
	P50    time.Duration `json:"p50_ns"`
	P99    time.Duration `json:"p99_ns"`
	// Resident is in bytes, at the end.
	Resident int64 `json:"resident_bytes"`
	disturbance
}

func sliceOf(before, after usage, seen sample) slice {
	return slice{
		Requests: seen.requests, Lasted: time.Duration(float64(seen.requests) / seen.rate * float64(time.Second)),
		CPU: after.cpu - before.cpu, System: after.system - before.system, P50: seen.p50, P99: seen.p99, Resident: after.resident,
	}
}

// cell is what one peer did in one scenario, in one round.
type cell struct {
	// CPU is the microseconds of processor time of the gateway per request, of which
	// System are the kernel's.
	CPU    float64 `json:"cpu_us"`
	System float64 `json:"system_us"`
	// Busy is the share of one processor that the gateway used: where it is below 1,
	// load and upstream were what limits the rate.
	Busy float64 `json:"busy"`
	// Rate is in requests per second, P50 and P99 in microseconds, Resident in bytes.
	Rate     float64 `json:"rate"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	Resident int64   `json:"resident_bytes"`
	Slices   []slice `json:"slices,omitempty"`
}

// cellOf adds up a round's slices, of which there is at least one. Percentiles
// cannot be added: their median stands for them.
func cellOf(all []slice) cell {
	var sum slice
	var p50, p99 []float64
	for _, one := range all {
		sum.Requests += one.Requests
		sum.Lasted += one.Lasted
		sum.CPU += one.CPU
		sum.System += one.System
		sum.Resident = one.Resident
		p50, p99 = append(p50, microseconds(one.P50)), append(p99, microseconds(one.P99))
	}
	each := func(d time.Duration) float64 { return microseconds(d) / float64(sum.Requests) }
	return cell{
		CPU: each(sum.CPU), System: each(sum.System), Busy: sum.CPU.Seconds() / sum.Lasted.Seconds(),
		Rate: float64(sum.Requests) / sum.Lasted.Seconds(), P50: spreadOf(p50).Median, P99: spreadOf(p99).Median,
		Resident: sum.Resident, Slices: all,
	}
}
