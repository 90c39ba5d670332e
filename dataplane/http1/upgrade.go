package http1

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// upgrade writes the 101 and lets the response carry the bytes from there. It
// returns how many went to the client.
func (c *conn) upgrade(resp *exchange.Response) (int64, error) {
	client := &spliced{conn: c}
	defer client.Close()
	// What the client sent before it could know the answer is no data of the
	// protocol. Of bytes that TLS holds back nothing is known here.
	if c.from < c.to || c.raw != nil && readable(c.raw) {
		if resp.Interrupt != nil {
			resp.Interrupt(errEarly)
		}
		c.abort = true
		return 0, errEarly
	}
	pooled := c.server.small.Get().(*[smallBuffer]byte)
	err := c.write(c.appendHead(pooled[:0], resp, noBody))
	c.server.small.Put(pooled)
	if err != nil {
		if resp.Interrupt != nil {
			resp.Interrupt(err)
		}
		return 0, fmt.Errorf("write to client: %w", err)
	}
	c.since.Store(0)
	_ = c.net.SetReadDeadline(time.Time{})
	err = resp.Upgrade(client)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return client.sent, err
}

// spliced is the client's end of an upgraded connection. One goroutine reads,
// one writes.
type spliced struct {
	conn *conn
	sent int64
}

// Read implements io.Reader. An upgraded connection is never idle too long.
func (s *spliced) Read(p []byte) (int, error) {
	for {
		n, err := s.conn.net.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		// A drain has woken all readers.
		if err := s.conn.net.SetReadDeadline(time.Time{}); err != nil {
			return 0, err
		}
	}
}

// Write implements io.Writer, with the time limit of any answer.
func (s *spliced) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), largeBuffer)]
		if err := s.conn.write(part); err != nil {
			return n, err
		}
		n += len(part)
		s.sent += int64(len(part))
		p = p[len(part):]
	}
	return n, nil
}

// Close implements io.Closer.
func (s *spliced) Close() error { return s.conn.net.Close() }
