package http1

import (
	"bytes"
	"fmt"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// maxTrailerBytes bounds a trailer section.
const maxTrailerBytes = 8 << 10

// chunks follows a chunked body (RFC 9112, 7.1) through windows of bytes. It
// refuses extensions, signs, blanks and bare line ends, which parsers read
// differently. The zero value stands before the first chunk; reset keeps the
// memory.
type chunks struct {
	state  chunkState
	digits uint8
	// left of the data of this chunk.
	left    uint64
	trailer []byte
	fields  []exchange.Field
}

type chunkState uint8

const (
	inSize chunkState = iota
	afterSize
	inData
	afterData
	afterDataCR
	inTrailer
	chunksDone
)

// reset prepares for another body. The trailer of the one before is gone.
func (s *chunks) reset() {
	clear(s.fields)
	*s = chunks{trailer: s.trailer[:0], fields: s.fields[:0]}
}

// next looks at a window of the body: b begins with framing bytes of framing,
// then come data bytes of data; the caller looks at what is behind with another
// call, until done, or until b is used up. With done the body ends behind the
// framing. The error wraps exchange.ErrMalformed; nothing of b is good then.
func (s *chunks) next(b []byte) (framing, data int, done bool, err error) {
	n := 0
	for n < len(b) {
		switch c := b[n]; s.state {
		case inSize:
			d := unhex(c)
			switch {
			case d < 16 && s.digits < 15:
				s.left = s.left<<4 | uint64(d)
				s.digits++
			case c == '\r' && s.digits > 0:
				s.state = afterSize
			default:
				return 0, 0, false, broken("chunk size")
			}
			n++
		case afterSize:
			if c != '\n' {
				return 0, 0, false, broken("end of a chunk size")
			}
			n++
			s.digits = 0
			s.state = inData
			if s.left == 0 {
				s.state = inTrailer
			}
		case inData:
			k := min(uint64(len(b)-n), s.left)
			if s.left -= k; s.left == 0 {
				s.state = afterData
			}
			return n, int(k), false, nil
		case afterData:
			if c != '\r' {
				return 0, 0, false, broken("end of a chunk")
			}
			n++
			s.state = afterDataCR
		case afterDataCR:
			if c != '\n' {
				return 0, 0, false, broken("end of a chunk")
			}
			n++
			s.state = inSize
		case inTrailer:
			k, done, err := s.scanTrailer(b[n:])
			return n + k, 0, done, err
		case chunksDone:
			return n, 0, true, nil
		}
	}
	return n, 0, s.state == chunksDone, nil
}

// scanTrailer takes the trailer section, line by line, up to its empty line.
func (s *chunks) scanTrailer(b []byte) (n int, done bool, err error) {
	for n < len(b) {
		line := b[n:]
		i := bytes.IndexByte(line, '\n')
		if i >= 0 {
			line = line[:i+1]
		}
		if len(s.trailer)+len(line) > maxTrailerBytes {
			return 0, false, broken("size of the trailer section")
		}
		s.trailer = append(s.trailer, line...)
		n += len(line)
		if i < 0 {
			return n, false, nil
		}
		end := len(s.trailer)
		if end < 2 || s.trailer[end-2] != '\r' {
			return 0, false, broken("line end in the trailer section")
		}
		if end == 2 || s.trailer[end-3] == '\n' {
			s.state = chunksDone
			return n, true, s.parseTrailer()
		}
	}
	return n, false, nil
}

// parseTrailer vets the whole section, which ends with an empty line.
func (s *chunks) parseTrailer() error {
	for i := 0; i < len(s.trailer)-2; {
		name, value, next, err := parseField(s.trailer, i)
		if err != nil || len(s.fields) == maxFields {
			return broken("trailer section")
		}
		s.fields = append(s.fields, exchange.Field{Name: name, Value: value})
		i = next
	}
	return nil
}

// header returns the trailer fields that may be passed on. Its strings hold until
// reset.
func (s *chunks) header() exchange.Header {
	h := exchange.HeaderOf(s.fields...)
	h.DelFunc(func(f exchange.Field) bool { return !admission.Trailer(f.Name) })
	s.fields = h.Fields()
	return h
}

func broken(what string) error {
	return fmt.Errorf("%w: invalid %s", exchange.ErrMalformed, what)
}

// unhex returns the value of a hexadecimal digit, or 255.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}
