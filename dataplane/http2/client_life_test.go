package http2

import (
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/http1"
)

// pipes is a connection in memory, of an upstream that says what the script does.
func pipes(t testing.TB, config ClientConfig, script func(*raw)) (c *ended, over *sync.WaitGroup) {
	near, far := net.Pipe()
	over = &sync.WaitGroup{}
	over.Go(func() {
		defer far.Close()
		script(rawOver(t, far))
	})
	return greet(t, near, config), over
}

// A connection that is silent while a request waits is asked whether it lives. One
// that says so is asked less and less often.
func TestClientAsksASilentUpstreamWhetherItLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var asked []time.Duration
		c, over := pipes(t, ClientConfig{Scheme: "http"}, func(r *raw) {
			r.welcome()
			_ = r.WriteSettingsAck()
			for {
				frame, err := r.ReadFrame()
				if err != nil {
					return
				}
				if ping, ok := frame.(*h2.PingFrame); ok {
					asked = append(asked, time.Since(begun))
					if len(asked) < 4 {
						_ = r.WritePing(true, ping.Data)
					}
				}
			}
		})
		call := asking(wanted("GET", "/"))
		call.Deadline = begun.Add(time.Hour)
		if _, _, err := c.ask(t, call); !errors.Is(err, http1.ErrNoAnswer) || !errors.Is(err, errSilent) {
			t.Error(err)
		}
		over.Wait()
		if len(asked) != 4 || asked[0] != silence || asked[1] != 2*silence || asked[2] < rareSilence || asked[3]-asked[2] < rareSilence {
			t.Errorf("asked at %v", asked)
		}
		if took := time.Since(begun); took != asked[3]+pingTimeout {
			t.Errorf("given up after %v", took)
		}
		<-c.over
	})
}

func TestClientEndsWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last *outcome
		c, over := pipes(t, ClientConfig{Scheme: "http", Idle: 40 * time.Second}, func(r *raw) {
			r.welcome()
			r.says(r.requested(), true, ":status", "204")
			last = r.await(0, func(o *outcome) bool { return false })
		})
		time.Sleep(30 * time.Second)
		if status, _, err := c.ask(t, asking(wanted("GET", "/"))); status != 204 || err != nil {
			t.Error(status, err)
		}
		idle := time.Now()
		<-c.over
		over.Wait()
		if took := time.Since(idle); took != 40*time.Second {
			t.Errorf("ended after %v", took)
		}
		if !last.gone || last.goAway != h2.ErrCodeNo {
			t.Errorf("no farewell: %+v", last)
		}
	})
}

// A socket that takes nothing more ends with the first request whose time is over:
// what writes for all would not see its own end.
func TestClientIsNotHeldUpByASocketThatTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, over := pipes(t, ClientConfig{Scheme: "http"}, func(r *raw) {
			r.welcome()
			_ = r.WriteSettingsAck()
			time.Sleep(time.Minute)
		})
		call := asking(wanted("GET", "/"))
		call.Deadline = call.Now.Add(5 * time.Second)
		began := time.Now()
		if _, _, err := c.ask(t, call); !errors.Is(err, http1.ErrTimeout) || time.Since(began) != 5*time.Second {
			t.Error(err, time.Since(began))
		}
		<-c.over
		over.Wait()
	})
}
