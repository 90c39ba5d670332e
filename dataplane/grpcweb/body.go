package grpcweb

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// trailerFlag marks the frame that holds the trailer.
const trailerFlag = 0x80

// framer reads a body and behind it its trailer as a frame.
type framer struct {
	from  exchange.Body
	tail  []byte
	ended bool
}

// Read implements io.Reader.
func (f *framer) Read(p []byte) (int, error) {
	if !f.ended {
		n, err := f.from.Reader.Read(p)
		if err != io.EOF {
			return n, err
		}
		f.ended = true
		if f.from.Trailer != nil {
			// Without any, the status stands in the head.
			if trailer := f.from.Trailer(); trailer.Len() > 0 {
				f.tail = frame(trailer)
			}
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	n := copy(p, f.tail)
	if f.tail = f.tail[n:]; len(f.tail) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// Close implements io.Closer.
func (f *framer) Close() error { return f.from.Reader.Close() }

// frame renders a trailer: its fields as in HTTP/1, names in lower case.
func frame(trailer exchange.Header) []byte {
	b := []byte{trailerFlag, 0, 0, 0, 0}
	for _, f := range trailer.Fields() {
		b = append(b, strings.ToLower(f.Name)...)
		b = append(b, ": "...)
		b = append(b, f.Value...)
		b = append(b, "\r\n"...)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
	return b
}

// encoder turns what it reads into base64, each piece padded, so that it can be
// decoded as it comes.
type encoder struct {
	from io.ReadCloser
	raw  [3 << 10]byte
	text [4 << 10]byte
	have []byte // of text
	err  error
}

// Read implements io.Reader.
func (e *encoder) Read(p []byte) (int, error) {
	for len(e.have) == 0 {
		if e.err != nil {
			return 0, e.err
		}
		var n int
		n, e.err = e.from.Read(e.raw[:])
		base64.StdEncoding.Encode(e.text[:], e.raw[:n])
		e.have = e.text[:base64.StdEncoding.EncodedLen(n)]
	}
	n := copy(p, e.have)
	e.have = e.have[n:]
	return n, nil
}

// Close implements io.Closer.
func (e *encoder) Close() error { return e.from.Close() }

// decoder decodes base64 in which any group of four may be padded: clients encode
// message by message.
type decoder struct {
	from io.ReadCloser
	text [4 << 10]byte
	left int // so many bytes of text are an incomplete group
	raw  [3 << 10]byte
	have []byte // of raw
	err  error
}

// Read implements io.Reader. It fails with exchange.ErrMalformed on what is no
// base64.
func (d *decoder) Read(p []byte) (int, error) {
	for len(d.have) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		d.fill()
	}
	n := copy(p, d.have)
	d.have = d.have[n:]
	return n, nil
}

func (d *decoder) fill() {
	n, err := d.from.Read(d.text[d.left:])
	n += d.left
	whole := n - n%4
	raw := d.raw[:0]
	for at := 0; at < whole; {
		end := at + 4
		for end < whole && d.text[end-1] != '=' {
			end += 4
		}
		size, bad := base64.StdEncoding.Strict().Decode(d.raw[len(raw):], d.text[at:end])
		raw = d.raw[:len(raw)+size]
		if bad != nil || strings.ContainsAny(string(d.text[at:end]), "\r\n") {
			err = fmt.Errorf("%w: the body is not base64", exchange.ErrMalformed)
			raw = nil
			break
		}
		at = end
	}
	d.have, d.left = raw, copy(d.text[:], d.text[whole:n])
	if err == io.EOF && d.left > 0 {
		err = fmt.Errorf("%w: the body's base64 is cut short", exchange.ErrMalformed)
	}
	d.err = err
}

// Close implements io.Closer.
func (d *decoder) Close() error { return d.from.Close() }
