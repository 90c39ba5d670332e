package http1

import (
	"errors"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	sendBuffer = 16 << 10
	// chunkRoom is left before the data of a chunk for its size line.
	chunkRoom = 8
	// lastWrite is how long the last bytes of a request may take once its answer is
	// complete.
	lastWrite = time.Second
)

var errBodyLength = errors.New("the request's body is shorter or longer than announced")

// buffers of senders: sendBuffer bytes each, behind chunkRoom.
var buffers = sync.Pool{New: func() any { return new([chunkRoom + sendBuffer + 2]byte) }}

// sender writes a body that is not there yet while the answer is awaited: an
// upstream may answer, and end the exchange, before it has read all.
type sender struct {
	// running is set between start and finish, owned by the connection's goroutine.
	running bool
	body    io.ReadCloser
	result  chan error
	// last is set when nothing more has to be read from the client.
	last atomic.Bool
	// bodyError is what reading the client's body failed with. It is set before the
	// connection is closed for it.
	bodyError atomic.Pointer[error]
}

func (s *sender) start(c *ClientConn, body io.ReadCloser, length int64) {
	s.running, s.body = true, body
	s.last.Store(false)
	go func() { s.result <- s.run(c, body, length) }()
}

func (s *sender) run(c *ClientConn, body io.Reader, left int64) error {
	buffer := buffers.Get().(*[chunkRoom + sendBuffer + 2]byte)
	defer buffers.Put(buffer)
	chunked := left < 0
	for {
		window := buffer[chunkRoom : chunkRoom+sendBuffer]
		n, err := body.Read(window)
		if err != nil && err != io.EOF {
			return s.fail(c, err)
		}
		ended := err == io.EOF
		var out []byte
		switch {
		case chunked:
			out = chunk(buffer, n, ended)
		default:
			out = window[:n]
			if left -= int64(n); left < 0 || ended && left > 0 {
				return s.fail(c, errBodyLength)
			}
			ended = left == 0
		}
		if ended {
			s.last.Store(true)
		}
		if len(out) > 0 {
			if _, err := c.conn.Write(out); err != nil {
				// The answer, if there is one, says more.
				return err
			}
		}
		if ended {
			return nil
		}
	}
}

// chunk frames n bytes that lie behind the room in the buffer.
func chunk(buffer *[chunkRoom + sendBuffer + 2]byte, n int, last bool) []byte {
	start, end := chunkRoom, chunkRoom+n
	if n > 0 {
		var size [chunkRoom]byte
		line := append(strconv.AppendUint(size[:0], uint64(n), 16), "\r\n"...)
		start -= copy(buffer[chunkRoom-len(line):], line)
		end += copy(buffer[end:], "\r\n")
	}
	if last {
		return append(buffer[start:end:end], "0\r\n\r\n"...)
	}
	return buffer[start:end]
}

func (s *sender) fail(c *ClientConn, err error) error {
	s.bodyError.Store(&err)
	c.raw.Close()
	return err
}

// finish ends sending, and tells whether all was sent. The front end's Close
// wakes a read that waits for the client.
func (s *sender) finish(c *ClientConn) bool {
	if !s.running {
		return true
	}
	select {
	case err := <-s.result:
		return s.reset(err)
	default:
	}
	if s.last.Load() && !c.broken && c.cause.Load() == nil {
		c.armWrite(time.Now().Add(lastWrite))
	} else {
		c.raw.Close()
		s.body.Close()
	}
	return s.reset(<-s.result)
}

func (s *sender) reset(err error) bool {
	s.running, s.body = false, nil
	s.bodyError.Store(nil)
	return err == nil
}
