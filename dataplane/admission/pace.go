package admission

import (
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// minBodyRate is how many bytes a second of a request's body a client must send
// on average, beyond BodyTimeout.
const minBodyRate = 240

// Pace holds whoever sends a request's body to a minimum rate: each wait for more
// may last for Patience, and all waits for one body together as long, and then a
// second for each minBodyRate bytes that came. Time in which nobody reads is not
// the sender's, nor is that in which the front end lets it send nothing.
//
// It holds until the answer begins: from there on what is behind the answer
// decides how long both may be silent (Timeouts.idle of the route). Before it
// nothing else would notice one that sends a byte at a time.
//
// The zero Pace waits for nothing; one with Patience is at the body's beginning.
type Pace struct {
	Patience time.Duration

	received int64
	waited   time.Duration
}

// Allows returns how long the next wait may last; not positive when the sender is
// too slow already.
func (p *Pace) Allows() time.Duration {
	// More than a terabyte earns no more, or the product would not fit.
	earned := time.Duration(min(p.received, 1<<40)/minBodyRate) * time.Second
	return min(p.Patience, p.Patience+earned-p.waited)
}

// Waited notes a wait.
func (p *Pace) Waited(d time.Duration) { p.waited += d }

// Received notes n bytes that came.
func (p *Pace) Received(n int) { p.received += int64(n) }

// Quiet tells whether a request's body may be silent from its beginning on: that
// of gRPC, whose client may send its first message, and the server its first
// answer, whenever there is something to say. What bounds one whose answer does not
// begin is the route's request timeout.
func Quiet(r *exchange.Request) bool { return r.GRPC() }
