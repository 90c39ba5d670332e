package follow

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A control plane ends a node's stream when the node opens another one: while a
// successor of the same name is about, the two must not chase each other.
func TestWhoHasASuccessorSeldomTakesTheStreamBack(t *testing.T) {
	a := newAuthor(t)
	streams := make(chan struct{}, 1000)
	taken := func(k *talk) error {
		streams <- struct{}{}
		if err := k.send(a.welcome()); err != nil {
			return err
		}
		return status.Error(codes.Aborted, "the node opened another stream")
	}
	n := newNode(t, func(c *Config) { c.MinBackoff, c.MaxBackoff = time.Millisecond, time.Hour }, &script{plays: []func(*talk) error{taken}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			<-streams
		}
		n.Hold(true)
		after := time.After(300 * time.Millisecond)
		for more := 0; ; {
			select {
			case <-streams:
				// One may be on its way, and one more have ended before Hold.
				if more++; more > 2 {
					t.Error("a stream is taken back at once")
					return
				}
			case <-after:
				return
			}
		}
	}()
	n.run(t, done)
}
