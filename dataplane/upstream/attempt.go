package upstream

import (
	"errors"
	"io"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// errUnwanted ends answers that nobody waits for any more.
var errUnwanted = errors.New("another answer came first")

// attempt is what came of asking one endpoint.
type attempt struct {
	ep   *endpoint // nil: none was there to be asked
	resp *exchange.Response
	done func(*exchange.Exchange)
	err  error
	// cancel, when set, interrupts the attempt; it is called once it has ended, too.
	cancel func(cause error)
	// number of the attempt in its race.
	number int
}

// smallRest is how much of an answer that nobody wants is read, so that its
// connection can be used again.
const smallRest = 4 << 10

// discard gives up an answer, if there is one.
func (a *attempt) discard() {
	if a.resp != nil {
		switch body := a.resp.Body.Reader; {
		case body != nil:
			if there, ok := body.(interface{ Buffered() int }); ok && a.resp.Body.Length >= 0 && a.resp.Body.Length <= smallRest && int64(there.Buffered()) == a.resp.Body.Length {
				_, _ = io.CopyN(io.Discard, body, a.resp.Body.Length)
			}
			body.Close()
		case a.resp.Upgrade != nil && a.resp.Interrupt != nil:
			a.resp.Interrupt(errUnwanted)
		}
		a.done(nil)
		a.ep.ended()
		a.resp = nil
	}
	if a.cancel != nil {
		a.cancel(errUnwanted)
	}
}

// keep hands the answer's end to the exchange.
func (a *attempt) keep(e *exchange.Exchange) {
	if cancel := a.cancel; cancel != nil {
		e.Done = append(e.Done, func(*exchange.Exchange) { cancel(nil) })
	}
	e.Done = append(e.Done, a.done, a.ep.end)
}
