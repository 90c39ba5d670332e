package upstream

import (
	"bufio"
	"context"
	"net"
	"sync/atomic"
	"testing"
)

// followed is a context that counts those who would hear of its end.
type followed struct {
	context.Context
	done chan struct{}
	by   atomic.Int64
}

func (f *followed) Done() <-chan struct{} { return f.done }

func (f *followed) AfterFunc(func()) (stop func() bool) {
	f.by.Add(1)
	return func() bool { f.by.Add(-1); return true }
}

// The context of an exchange is that of its connection, which may last for days:
// nothing of a request may hang on it once that has failed.
func TestAFailedRaceLeavesNothingBehind(t *testing.T) {
	url := scripted(t, func(_ int, c net.Conn, r *bufio.Reader) { _, _ = r.ReadByte() })
	b := guarded(t, "{endpoints: [{url: '"+url+"'}]}", "{hedging: {delay: 1s}}")
	span := &followed{Context: context.Background(), done: make(chan struct{})}
	for range 3 {
		e := get("/")
		if _, err := b.Do(e, span, soon()); err == nil {
			t.Fatal("an answer of nobody")
		}
		e.End()
	}
	if n := span.by.Load(); n != 0 {
		t.Errorf("%d contexts of requests that have ended wait for the connection's end", n)
	}
}
