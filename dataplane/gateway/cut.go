package gateway

import (
	"errors"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/upstream"
)

// Cut is why an answer did not reach the client whole, as the access log and the
// span have it: a stable name.
type Cut string

// The ways in which an answer is cut short.
const (
	CutClientGone   Cut = "client_gone"   // it closed the connection or reset the stream
	CutClientSlow   Cut = "client_slow"   // it did not read for too long
	CutUpstream     Cut = "upstream"      // it broke off, or sent what is no answer
	CutIdleTimeout  Cut = "idle_timeout"  // the upstream said nothing for longer than timeouts.idle
	CutRevoked      Cut = "revoked"       // the stream's credential was, while it was open
	CutNodeStopping Cut = "node_stopping" // its drain was over
	CutInternal     Cut = "internal"      // the gateway's own code failed
)

// Cuts returns all of them.
func Cuts() []Cut {
	return []Cut{CutClientGone, CutClientSlow, CutUpstream, CutIdleTimeout, CutRevoked, CutNodeStopping, CutInternal}
}

// cutOf says which a Result.Err is; "" for none.
func cutOf(err error) Cut {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errRevoked):
		return CutRevoked
	case errors.Is(err, exchange.ErrStopping):
		return CutNodeStopping
	case errors.Is(err, exchange.ErrClientGone):
		return CutClientGone
	case errors.Is(err, exchange.ErrClientSlow):
		return CutClientSlow
	case errors.Is(err, upstream.ErrSilent):
		return CutIdleTimeout
	case errors.Is(err, exchange.ErrInternal):
		return CutInternal
	}
	return CutUpstream
}
