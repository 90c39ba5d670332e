package gateway

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/upstream"
)

func TestCutOf(t *testing.T) {
	met := []Cut{}
	for _, c := range []struct {
		err  error
		want Cut
	}{
		{nil, ""}, {errRevoked, CutRevoked}, {exchange.ErrStopping, CutNodeStopping}, {exchange.ErrClientGone, CutClientGone},
		{exchange.ErrClientSlow, CutClientSlow}, {upstream.ErrSilent, CutIdleTimeout}, {exchange.ErrInternal, CutInternal},
		{io.ErrUnexpectedEOF, CutUpstream}, {errors.New("reset"), CutUpstream},
		// That the pool is closed says that the node stops, not that the upstream is ill.
		{fmt.Errorf("%w: %w", upstream.ErrUnavailable, exchange.ErrStopping), CutNodeStopping},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("read upstream's answer: %w", err)
		}
		if got := cutOf(err); got != c.want {
			t.Errorf("%v: %q, want %q", err, got, c.want)
		}
		met = append(met, c.want)
	}
	for _, cut := range Cuts() {
		if !slices.Contains(met, cut) {
			t.Errorf("nothing is %s", cut)
		}
	}
}
