package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// hostTimes are what each processor has done since the machine started, in the
// order of /proc/stat.
type hostTimes []hostTime

// hostTime is one processor's: at work (for anybody), taken by the hypervisor for
// others while there was work, and both with what it stood idle.
type hostTime struct {
	busy, stolen, total time.Duration
}

func readHost() (hostTimes, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, err
	}
	return parseHost(string(text))
}

// parseHost reads the processors' lines of /proc/stat (proc(5)): user, nice,
// system, idle, iowait, irq, softirq and steal, in the same unit as a process's.
func parseHost(text string) (all hostTimes, err error) {
	const idle, iowait, steal = 3, 4, 7
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "cpu" || !strings.HasPrefix(fields[0], "cpu") {
			continue
		}
		if len(fields) < steal+2 {
			return nil, fmt.Errorf("not a processor's line of /proc/stat: %q", line)
		}
		var one hostTime
		for i, field := range fields[1 : steal+2] {
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("/proc/stat: %w", err)
			}
			took := time.Duration(ticks) * userTick
			one.total += took
			switch i {
			case idle, iowait:
			case steal:
				one.stolen += took
			default:
				one.busy += took
			}
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		return nil, errors.New("/proc/stat has no processor")
	}
	return all, nil
}

// disturbance is what kept a window from being the gateway's and the load's alone.
type disturbance struct {
	// Stolen is the share of its time that the hypervisor took from the processor
	// that lost most.
	Stolen float64 `json:"stolen"`
	// Foreign is how many processors' time processes had that are not measured.
	Foreign float64 `json:"foreign"`
}

// What a window may lose before it is measured again. Steal is counted in ticks of
// 10 ms: of a second one tick says nothing yet, two do. Processors' time is
// sampled at their ticks, a process's is exact: a difference of some hundredths is
// no process.
const (
	stolenMost  = 0.015
	foreignMost = 0.10
)

// between compares two readings; known is the processor time that what is
// measured has had between them.
func (before hostTimes) between(after hostTimes, known time.Duration) (d disturbance, err error) {
	if len(before) != len(after) {
		return d, fmt.Errorf("there were %d processors, now there are %d", len(before), len(after))
	}
	var busy, lasted time.Duration
	for i := range after {
		total := after[i].total - before[i].total
		busy += after[i].busy - before[i].busy
		lasted = max(lasted, total)
		if total > 0 {
			d.Stolen = max(d.Stolen, float64(after[i].stolen-before[i].stolen)/float64(total))
		}
	}
	if lasted > 0 {
		d.Foreign = max(0, float64(busy-known)/float64(lasted))
	}
	return d, nil
}

// weight is above 1 when the window was disturbed.
func (d disturbance) weight() float64 { return max(d.Stolen/stolenMost, d.Foreign/foreignMost) }

// triesMost is how often a window is measured at most.
const triesMost = 5

// windows counts what has been measured.
type windows struct {
	// spare is how many windows may still be measured again, so that a machine that
	// is never quiet does not keep the run from ending.
	spare int
	// Kept is how many windows count, of which Stolen were disturbed by the hypervisor
	// and Foreign by other processes in each try; Repeated were thrown away.
	Kept     int `json:"kept"`
	Stolen   int `json:"disturbed_by_hypervisor"`
	Foreign  int `json:"disturbed_by_processes"`
	Repeated int `json:"thrown_away"`
}

// quietest measures a window, again and again while it is disturbed and may be
// repeated, and returns the least disturbed.
func quietest[T any](w *windows, measure func() (T, disturbance, error)) (best T, least disturbance, err error) {
	for try := 1; ; try++ {
		got, seen, err := measure()
		if err != nil {
			return best, least, err
		}
		if try == 1 || seen.weight() < least.weight() {
			best, least = got, seen
		}
		if least.weight() <= 1 || try == triesMost || w.spare == 0 {
			break
		}
		w.spare--
		w.Repeated++
	}
	w.Kept++
	if least.Stolen > stolenMost {
		w.Stolen++
	}
	if least.Foreign > foreignMost {
		w.Foreign++
	}
	return best, least, nil
}

func (w windows) String() string {
	return fmt.Sprintf("%d of %d windows were disturbed by the hypervisor (it took over %.1f %% of a processor), %d by other processes (over %.0f %%), in every try; %d were thrown away and measured again",
		w.Stolen, w.Kept, 100*stolenMost, w.Foreign, 100*foreignMost, w.Repeated)
}
