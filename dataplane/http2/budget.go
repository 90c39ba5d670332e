package http2

import (
	"time"

	h2 "golang.org/x/net/http2"
)

// What a client may do that costs it less than us. Each is a token bucket; the
// limits are far above what any client does that wants answers.
const (
	// Frames that carry nothing: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM,
	// empty DATA and unknown ones; and each of the settings. What is answered earns more of them, since a
	// client grants windows for what it receives.
	mostControl    = 2000
	controlPerSec  = 100
	controlPerData = 4
	controlPerHead = 16
	// Requests given up before they are answered, whichever side resets them:
	// rapid reset, CVE-2023-44487, and its like by provoked errors, CVE-2025-8671.
	mostResets   = 200
	resetsPeriod = 30 * time.Second
	// CONTINUATION frames of one header block, CVE-2024-27316.
	mostContinuations = 128
	// mostAnswers bounds the answers to control frames that wait to be written, in
	// bytes. Those to requests are bounded by their number.
	mostAnswers = 64 << 10
)

// budget counts. It is guarded by conn.mu.
type budget struct {
	control, resets int
	refilled        time.Time
}

func newBudget(now time.Time) budget {
	return budget{control: mostControl, resets: mostResets, refilled: now}
}

// refill adds what time earns.
func (b *budget) refill(now time.Time) {
	passed := now.Sub(b.refilled)
	resets := int(passed * mostResets / resetsPeriod)
	if resets == 0 {
		return
	}
	b.refilled = now
	b.control = min(mostControl, b.control+int(passed.Seconds()*controlPerSec))
	b.resets = min(mostResets, b.resets+resets)
}

// frame spends one frame that carries nothing.
func (b *budget) frame() error {
	if b.control--; b.control >= 0 {
		return nil
	}
	if b.refill(time.Now()); b.control < 0 {
		return connectionError{h2.ErrCodeEnhanceYourCalm, "too many control frames"}
	}
	return nil
}

// reset spends one stream that is given up.
func (b *budget) reset() error {
	if b.resets--; b.resets >= 0 {
		return nil
	}
	if b.refill(time.Now()); b.resets < 0 {
		return connectionError{h2.ErrCodeEnhanceYourCalm, "too many streams reset"}
	}
	return nil
}

// sent earns for one DATA frame.
func (b *budget) sent() { b.control = min(mostControl, b.control+controlPerData) }

// answered earns for one answer.
func (b *budget) answered() {
	b.control = min(mostControl, b.control+controlPerHead)
	b.resets = min(mostResets, b.resets+1)
}
