package sim

import "time"

// meter finds the worst second of a run: for each admission, what was admitted
// in the second that ends with it, against what one bucket allows in a second
// that begins where that one did.
type meter struct {
	rate  float64
	warm  time.Duration
	worst float64

	admitted []time.Duration // of the last second
	levels   []mark          // of the one bucket, in the last second and the mark before it
}

type mark struct {
	at    time.Duration
	level float64
}

func newMeter(rate float64, warm time.Duration) *meter { return &meter{rate: rate, warm: warm} }

// level notes what the one bucket holds at a request.
func (m *meter) level(at time.Duration, level float64) {
	m.levels = append(m.levels, mark{at, level})
	for len(m.levels) > 1 && m.levels[1].at <= at-time.Second {
		m.levels = m.levels[1:]
	}
}

// admit notes an admission.
func (m *meter) admit(at time.Duration) {
	m.admitted = append(m.admitted, at)
	for m.admitted[0] <= at-time.Second {
		m.admitted = m.admitted[1:]
	}
	if at-time.Second < m.warm && m.warm > 0 {
		return
	}
	m.worst = max(m.worst, float64(len(m.admitted))/(m.rate+m.levels[0].level))
}
