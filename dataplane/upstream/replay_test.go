package upstream

import (
	"io"
	"net"
	"testing"
	"time"
)

// A client of HTTP/2 may send all of a body without saying that it ends: whoever
// asks for the end behind it does not wait for the client.
func TestABodyThatIsWholeHasEnded(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	defer near.Close()
	go func() { _, _ = far.Write([]byte("four")) }()
	r := &replay{reader: near, length: 4}
	_ = near.SetReadDeadline(time.Now().Add(5 * time.Second))
	if body, err := io.ReadAll(r); string(body) != "four" || err != nil || !r.again() {
		t.Errorf("%q %v", body, err)
	}
}
