package exchange

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestDropHopByHop(t *testing.T) {
	h := HeaderOf(
		Field{"Connection", "close, x-user"}, Field{"X-User", "a"}, Field{"connection", ",X-B ,,\tX-C"},
		Field{"x-b", "b"}, Field{"X-C", "c"}, Field{"Keep", "1"}, Field{"TE", "x"}, Field{"trailer", "x"},
		Field{"Upgrade", "h2c"}, Field{"Keep-Alive", "x"}, Field{"Content-Length", "1"}, Field{"HTTP2-Settings", "x"},
		Field{"Proxy-Connection", "x"}, Field{"Transfer-Encoding", "chunked"}, Field{"Proxy-Authenticate", "x"},
		Field{"Proxy-Authorization", "x"}, Field{"Keep", "2"})
	if err := h.DropHopByHop(); err != nil {
		t.Fatal(err)
	}
	if got := h.Fields(); !slices.Equal(got, []Field{{"Keep", "1"}, {"Keep", "2"}}) {
		t.Errorf("left: %v", got)
	}
	h = HeaderOf(Field{"Connection", strings.Repeat("a,", maxConnectionOptions+1)})
	if err := h.DropHopByHop(); !errors.Is(err, ErrMalformed) {
		t.Error("a flood of options:", err)
	}
}

func TestSafeName(t *testing.T) {
	for name, want := range map[string]bool{"X-User": true, "a": true, "": false, "X_User": false, "x.user": false, "X-User ": false, "X\u212a": false, "a~b": false} {
		if SafeName(name) != want {
			t.Errorf("%q", name)
		}
	}
}
