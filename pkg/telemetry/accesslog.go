package telemetry

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

// AccessLogConfig says where an access log goes.
type AccessLogConfig struct {
	// Writer gets whole lines, many at once. Required.
	Writer io.Writer
	// Buffer is how many bytes of lines may wait for the Writer; 0: 1 MiB.
	Buffer int
}

// AccessLog writes one JSON line per request. Log never waits for the writer: what
// does not fit into the buffer is dropped and counted, and the log itself says
// how many lines are missing and where. Safe for concurrent use.
type AccessLog struct {
	to     io.Writer
	limit  int
	wake   chan struct{} // capacity 1
	buffer sync.Pool     // *[]byte, a line being built

	mu      sync.Mutex
	pending []byte
	missing uint64 // since the last batch
	dropped uint64
	failed  uint64
}

// AccessLogStats counts since the start.
type AccessLogStats struct {
	// Dropped lines did not fit into the buffer.
	Dropped uint64
	// FailedWrites are batches that the writer refused.
	FailedWrites uint64
}

const defaultAccessLogBuffer = 1 << 20

// NewAccessLog returns a log that writes once Run runs.
func NewAccessLog(c AccessLogConfig) *AccessLog {
	if c.Buffer == 0 {
		c.Buffer = defaultAccessLogBuffer
	}
	return &AccessLog{
		to: c.Writer, limit: c.Buffer, wake: make(chan struct{}, 1),
		buffer: sync.Pool{New: func() any { return new(make([]byte, 0, 1024)) }},
	}
}

// Log queues an entry. It keeps nothing of it and allocates nothing.
func (l *AccessLog) Log(e *AccessEntry) {
	b := l.buffer.Get().(*[]byte)
	*b = e.Append((*b)[:0])
	l.mu.Lock()
	if fits := len(l.pending)+len(*b) <= l.limit; fits {
		l.pending = append(l.pending, *b...)
	} else {
		l.missing++
		l.dropped++
	}
	l.mu.Unlock()
	l.buffer.Put(b)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Stats returns what was lost so far.
func (l *AccessLog) Stats() AccessLogStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return AccessLogStats{l.dropped, l.failed}
}

// Run writes until ctx ends, then writes what is queued and returns nil. It waits
// for the writer: closing that, where it can be closed, frees a Run whose writer
// hangs.
func (l *AccessLog) Run(ctx context.Context) error {
	batch := make([]byte, 0, 64<<10)
	for {
		select {
		case <-ctx.Done():
			l.write(batch)
			return nil
		case <-l.wake:
			batch = l.write(batch)
		}
	}
}

// write trades the queue for an empty buffer and writes it.
func (l *AccessLog) write(empty []byte) []byte {
	l.mu.Lock()
	batch, missing := l.pending, l.missing
	l.pending, l.missing = empty[:0], 0
	l.mu.Unlock()
	if missing > 0 {
		batch = appendMissing(batch, missing)
	}
	if len(batch) == 0 {
		return batch
	}
	if _, err := l.to.Write(batch); err != nil {
		l.mu.Lock()
		l.failed++
		l.mu.Unlock()
	}
	return batch
}

func appendMissing(b []byte, n uint64) []byte {
	b = append(b, `{"time":"`...)
	b = time.Now().UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","event":"access_log_dropped","dropped":`...)
	b = strconv.AppendUint(b, n, 10)
	return append(b, "}\n"...)
}

// Format keeps an AccessLog from being printed with what is queued in it.
func (l *AccessLog) Format(f fmt.State, _ rune) { fmt.Fprint(f, "access log") }
