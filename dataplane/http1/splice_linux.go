package http1

import (
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// A long body of known length goes from the upstream's socket to the client's by
// splice(2), through a pipe in which the kernel passes pages on: nobody copies its
// bytes, twice, and the processor's caches keep what others need.
const (
	// spliceFrom is the shortest rest of a body that is spliced.
	spliceFrom = 64 << 10
	// pipeSize is how much is moved at once. A pipe counts pages, and a page may
	// hold as little as one packet.
	pipeSize = 256 << 10
	// maxPipes are half of what Linux lets one user have (fs.pipe-user-pages-soft):
	// a second process may be taking over. Slow clients may hold all of them; other
	// bodies are then copied.
	maxPipes = 128
)

// pipes lends pipes to those who have something to put in: nobody holds an empty
// one. The zero value is ready for use.
type pipes struct {
	lent atomic.Int64
	idle sync.Pool // of *pipe; those that the collector takes are closed
}

// pipe is one pipe of the kernel. One goroutine uses it.
type pipe struct {
	ends  [2]int // to read from, to write to
	holds int    // bytes
	clean runtime.Cleanup
}

// take returns an empty pipe, or nil when there are too many.
func (s *pipes) take() *pipe {
	if s.lent.Add(1) <= maxPipes {
		if p, ok := s.idle.Get().(*pipe); ok {
			return p
		}
		if p := newPipe(); p != nil {
			return p
		}
	}
	s.lent.Add(-1)
	return nil
}

// give takes a pipe back. Nobody gets one that is not empty.
func (s *pipes) give(p *pipe) {
	s.lent.Add(-1)
	if p.holds > 0 {
		p.clean.Stop()
		closeEnds(p.ends)
		return
	}
	s.idle.Put(p)
}

// newPipe returns nil when the system grants none that is large enough to pay.
func newPipe() *pipe {
	p := &pipe{}
	if unix.Pipe2(p.ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	if _, err := unix.FcntlInt(uintptr(p.ends[0]), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		closeEnds(p.ends)
		return nil
	}
	p.clean = runtime.AddCleanup(p, closeEnds, p.ends)
	return p
}

func closeEnds(ends [2]int) {
	_ = unix.Close(ends[0])
	_ = unix.Close(ends[1])
}

// splicing moves one body.
type splicing struct {
	pipes *pipes
	pipe  *pipe // nil when nothing is under way
	most  int   // to be moved into the pipe
	moved int
	err   error
}

// spliceable returns the connection from which the body of an answer can be
// spliced, once what is buffered of it has been written; nil if it cannot, or is
// too short to pay.
func (c *conn) spliceable(body *exchange.Body) *ClientConn {
	b, ok := body.Reader.(*clientBody)
	if !ok || c.raw == nil {
		return nil
	}
	if _, bare := c.net.(*net.TCPConn); !bare {
		return nil
	}
	from := (*ClientConn)(b)
	if !from.canAsk() || from.left < spliceFrom || body.Length != from.left+int64(from.ready-from.from) {
		return nil
	}
	return from
}

// splice moves the rest of a body to the client and returns how much of it
// arrived there. After errNoPipe the rest is still to be read from the body.
func (c *conn) splice(from *ClientConn) (sent int64, err error) {
	s := &splicing{pipes: &c.server.pipes}
	fill, empty := s.fill, s.empty
	for from.left > 0 {
		s.most = int(min(from.left, pipeSize))
		if err := from.readRaw(s, fill); err != nil {
			return sent, err
		}
		err := c.writeRaw(s, empty, &sent)
		s.pipes.give(s.pipe)
		if s.pipe = nil; err != nil {
			return sent, err
		}
	}
	return sent, c.atEnd((*clientBody)(from))
}

// readRaw waits for more of the body, as long as read does, and moves it into a
// pipe.
func (c *ClientConn) readRaw(s *splicing, fill func(fd uintptr) bool) error {
	switch {
	case c.closed:
		return errBodyClosed
	case c.bodyError != nil:
		return c.bodyError
	}
	for start := c.waitBegins(); ; {
		s.moved, s.err = 0, nil
		err := c.peek.Read(fill)
		switch {
		case s.moved > 0:
			c.left -= int64(s.moved)
			c.ended = c.left == 0
			return nil
		case s.err == errNoPipe:
			return errNoPipe
		case err == nil:
			err = s.err
		}
		if err = c.stillWaits(err, start); err != nil {
			return c.breakOff(short(err))
		}
	}
}

// fill is called by the poller: at first, and each time that there may be something
// to read. It returns false to wait.
func (s *splicing) fill(fd uintptr) (done bool) {
	p := s.pipes.take()
	if p == nil {
		s.err = errNoPipe
		return true
	}
	n, err := splice(int(fd), p.ends[1], s.most)
	if n > 0 {
		p.holds, s.moved, s.pipe = n, n, p
		return true
	}
	s.pipes.give(p)
	switch err {
	case nil:
		s.err = io.EOF
	case unix.EAGAIN:
		return false
	case unix.EINVAL, unix.ENOSYS, unix.EPERM:
		// Not this kind of socket, or not on this system.
		s.err = errNoPipe
	default:
		s.err = os.NewSyscallError("splice", err)
	}
	return true
}

// writeRaw moves what is in the pipe to the client. The time limit is that of
// other writes: it begins anew whenever as much has been taken as they write.
func (c *conn) writeRaw(s *splicing, empty func(fd uintptr) bool, sent *int64) error {
	for s.pipe.holds > 0 {
		if err := c.allowWrite(time.Now()); err != nil {
			return err
		}
		s.moved, s.err = 0, nil
		err := c.raw.Write(empty)
		*sent += int64(s.moved)
		if err == nil {
			err = s.err
		}
		if err != nil {
			return c.lost(err)
		}
	}
	return nil
}

// empty is called by the poller, as fill is.
func (s *splicing) empty(fd uintptr) (done bool) {
	for s.pipe.holds > 0 {
		n, err := splice(s.pipe.ends[0], int(fd), s.pipe.holds)
		switch {
		case n > 0:
			s.pipe.holds -= n
			s.moved += n
		case err == unix.EAGAIN:
			return s.moved >= largeBuffer
		default:
			s.err = os.NewSyscallError("splice", err)
			return true
		}
	}
	return true
}

func splice(from, to, most int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, most, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return int(n), err
		}
	}
}
