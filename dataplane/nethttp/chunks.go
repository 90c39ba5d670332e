package nethttp

import (
	"bytes"
	"fmt"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// maxTrailerBytes bounds the trailer section, which is read and dropped. net/http
// wants all of it in its buffer of 4 KiB.
const maxTrailerBytes = 2 << 10

// chunks follows a chunked body (RFC 9112, 7.1) to find its end. It refuses
// extensions, signs, blanks and bare line ends, which parsers read differently.
type chunks struct {
	state  chunkState
	digits int
	// left of the data of this chunk.
	left    uint64
	trailer []byte
}

type chunkState uint8

const (
	inSize chunkState = iota
	afterSize
	inData
	afterData
	afterDataCR
	inTrailer
)

// scan consumes bytes of the body and returns how many, and whether the body
// ends there. The error wraps exchange.ErrMalformed; the n bytes before it are
// good.
func (s *chunks) scan(b []byte) (n int, done bool, err error) {
	for n < len(b) {
		switch c := b[n]; s.state {
		case inSize:
			d, ok := hexDigit(c)
			switch {
			case ok && s.digits < 15:
				s.left = s.left<<4 | uint64(d)
				s.digits++
			case c == '\r' && s.digits > 0:
				s.state = afterSize
			default:
				return n, false, broken("chunk size")
			}
			n++
		case afterSize:
			if c != '\n' {
				return n, false, broken("end of a chunk size")
			}
			n++
			s.digits = 0
			s.state = inData
			if s.left == 0 {
				s.state = inTrailer
			}
		case inData:
			k := min(uint64(len(b)-n), s.left)
			n += int(k)
			if s.left -= k; s.left == 0 {
				s.state = afterData
			}
		case afterData:
			if c != '\r' {
				return n, false, broken("end of a chunk")
			}
			n++
			s.state = afterDataCR
		case afterDataCR:
			if c != '\n' {
				return n, false, broken("end of a chunk")
			}
			n++
			s.state = inSize
		case inTrailer:
			k, done, err := s.scanTrailer(b[n:])
			return n + k, done, err
		}
	}
	return n, false, nil
}

// scanTrailer consumes the trailer section, line by line.
func (s *chunks) scanTrailer(b []byte) (n int, done bool, err error) {
	for n < len(b) {
		line := b[n:]
		i := bytes.IndexByte(line, '\n')
		if i >= 0 {
			line = line[:i+1]
		}
		if s.trailer = append(s.trailer, line...); len(s.trailer) > maxTrailerBytes {
			return n, false, broken("size of the trailer section")
		}
		if i < 0 {
			return len(b), false, nil
		}
		start := bytes.LastIndexByte(s.trailer[:len(s.trailer)-1], '\n') + 1
		text, ok := bytes.CutSuffix(s.trailer[start:], []byte("\r\n"))
		if !ok {
			return n, false, broken("line end in the trailer section")
		}
		if len(text) == 0 {
			return n + len(line), true, nil
		}
		if _, _, err := parseField(string(text)); err != nil {
			return n, false, broken("trailer field")
		}
		n += len(line)
	}
	return n, false, nil
}

func broken(what string) error {
	return fmt.Errorf("%w: invalid %s", exchange.ErrMalformed, what)
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
