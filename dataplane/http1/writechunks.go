package http1

import (
	"io"
	"strconv"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// What frames a chunk: its size of at most four digits before, and behind it a
// line end and the end of the body.
const (
	chunkSize = len("ffff\r\n")
	chunkEnd  = len("\r\n0\r\n\r\n")
)

// streamChunks writes each piece as it comes, since a client may wait for it: the
// first one together with the head.
func (c *conn) streamChunks(head []byte, resp *exchange.Response) (sent int64, err error) {
	b := head
	if waiting(resp.Body.Reader) || cap(b)-len(b) < 2*(chunkSize+chunkEnd) {
		if err := c.write(b); err != nil {
			return 0, err
		}
		b = b[:0]
	}
	for {
		start := len(b) + chunkSize
		data := b[start : cap(b)-chunkEnd]
		n, err := resp.Body.Reader.Read(data)
		full := n == len(data)
		out := b
		if n > 0 {
			out = enclose(b, start, n)
		}
		if err == io.EOF {
			out = appendLast(out, &resp.Body)
		}
		if len(out) > 0 && (n > 0 || err == io.EOF) {
			if werr := c.write(out); werr != nil {
				return sent, werr
			}
			b = b[:0]
		}
		sent += int64(n)
		switch {
		case err == io.EOF:
			return sent, nil
		case err != nil && len(b) > 0:
			return 0, unsent{err}
		case err != nil:
			return sent, err
		case full && cap(b) < largeBuffer:
			pooled := c.server.large.Get().(*[largeBuffer]byte)
			defer c.server.large.Put(pooled)
			b = pooled[:0]
		}
	}
}

// waiting tells whether a body says that it has nothing yet: then the head is not
// held back for it.
func waiting(body io.Reader) bool {
	b, ok := body.(interface{ Buffered() int })
	return ok && b.Buffered() == 0
}

// enclose makes a chunk of the n bytes at start, behind the bytes of b, which it
// moves up to the chunk's size.
func enclose(b []byte, start, n int) []byte {
	var digits [8]byte
	size := strconv.AppendUint(digits[:0], uint64(n), 16)
	at := start - len(size) - 2
	gap := at - len(b)
	whole := b[:start+n]
	copy(whole[gap:], b)
	copy(whole[at:], size)
	whole[start-2], whole[start-1] = '\r', '\n'
	return append(whole[gap:], '\r', '\n')
}

// appendLast renders the last chunk and the trailer section.
func appendLast(b []byte, body *exchange.Body) []byte {
	b = append(b, '0', '\r', '\n')
	if body.Trailer != nil {
		trailer := body.Trailer()
		for i, fields := 0, trailer.Fields(); i < len(fields); i++ {
			if !exchange.HopByHop(fields[i].Name) {
				b = appendField(b, &fields[i])
			}
		}
	}
	return append(b, '\r', '\n')
}
