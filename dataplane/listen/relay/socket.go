package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
)

// Socket is one process's part of a UDP socket. It is a quic.OOBCapablePacketConn
// with the batched reads that quic-go looks for: with no predecessor alive, a read
// costs one atomic load more than that of the socket itself. All methods may be
// called concurrently, but ReadBatch by one goroutine only.
type Socket struct {
	*net.UDPConn
	batch *ipv4.PacketConn
	own   tag
	keys  Keys
	log   *slog.Logger

	// older are the processes that are passed their packets; nil for none.
	older atomic.Pointer[[]*older]
	// source is the socket pair's end from which packets come once the socket is
	// handed over; nil while it is read itself.
	source atomic.Pointer[net.UnixConn]
	// first is the end at which the direct predecessor says that it has handed over;
	// nil without one.
	first    *older
	handed   chan struct{} // capacity 1: the reader has handed over
	watching sync.WaitGroup

	// Owned by the reader.
	frame [maxFrame]byte

	mu sync.Mutex
	// Guarded by mu. offered is our end of the pair that the newest Offer made;
	// handing: the reader is to hand over to who has the other.
	offered *net.UnixConn
	handing bool
	closed  bool
	// leaving are those of older that the last Offer left out; plug keeps silence
	// open for who was.
	leaving  []*older
	plug     *os.File
	deadline time.Time // of reads, as the user of the socket wants it
}

// Listen opens a socket at the address, host:port. log gets what goes wrong beside
// the packets' way; it must not be nil.
func Listen(address string, log *slog.Logger) (*Socket, error) {
	pc, err := net.ListenPacket("udp", address)
	if err != nil {
		return nil, err
	}
	return newSocket(pc.(*net.UDPConn), log), nil
}

func newSocket(conn *net.UDPConn, log *slog.Logger) *Socket {
	return &Socket{UDPConn: conn, batch: ipv4.NewPacketConn(conn), own: newTag(), keys: newKeys(), log: log, handed: make(chan struct{}, 1)}
}

// IDs makes this process's connection IDs.
func (s *Socket) IDs() quic.ConnectionIDGenerator { return ids(s.own) }

// Keys returns the keys to use; after Await, where that is called.
func (s *Socket) Keys() Keys { return s.keys }

// Await returns when this process may read: at once, unless the socket is
// inherited, then once the predecessor has handed over or is gone. The error is
// that of ctx. It must be called before the first read, and once.
func (s *Socket) Await(ctx context.Context) error {
	if s.first == nil {
		return nil
	}
	defer context.AfterFunc(ctx, func() { _ = s.first.conn.SetReadDeadline(time.Now()) })()
	var b [maxFrame]byte
	n, err := s.first.conn.Read(b[:])
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		if keys, bad := parseKeys(b[:n]); bad == nil {
			s.keys = keys
		} else {
			s.log.Warn("QUIC's keys are drawn anew", "error", bad)
		}
	}
	s.watch()
	return nil
}

// watch notices when processes that are passed packets end.
func (s *Socket) watch() {
	all := s.older.Load()
	if all == nil {
		return
	}
	for _, o := range *all {
		s.watching.Go(func() {
			// Nobody writes to it any more, so this waits for its end.
			_, _ = io.Copy(io.Discard, o.conn)
			s.forget(o)
		})
	}
}

// forget stops passing packets to a process.
func (s *Socket) forget(o *older) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.older.Load()
	if s.closed || all == nil {
		return // closed already
	}
	left := slices.DeleteFunc(slices.Clone(*all), func(other *older) bool { return other == o })
	if s.older.Store(&left); len(left) == 0 {
		s.older.Store(nil)
	}
	_ = o.conn.Close()
	s.log.Info("a process before this one needs no more packets", "passed_on", o.passed.Load(), "dropped", o.dropped.Load())
}

// ReadBatch reads what belongs to this process: at least one datagram, or it fails.
func (s *Socket) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	for {
		if source := s.source.Load(); source != nil {
			switch err := s.receive(source, &ms[0]); {
			case err == nil:
				return 1, nil
			case errors.Is(err, os.ErrDeadlineExceeded):
				return 0, err
			case errors.Is(err, errLeftOut):
				s.rest(source)
			case !errors.Is(err, errFrame):
				s.resume(source, err)
			}
			continue
		}
		n, err := s.batch.ReadBatch(ms, flags)
		if errors.Is(err, os.ErrDeadlineExceeded) && s.handOver() {
			continue
		}
		if err != nil {
			return n, err
		}
		if all := s.older.Load(); all != nil {
			n = s.sort(ms[:n], *all)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// receive reads one packet that a successor passed on.
func (s *Socket) receive(source *net.UnixConn, m *ipv4.Message) error {
	n, err := source.Read(s.frame[:])
	if err != nil {
		return err
	}
	if n == 1 && s.frame[0] == leftOut {
		return errLeftOut
	}
	from, oob, datagram, err := parsePacket(s.frame[:n])
	if err != nil {
		return err
	}
	m.Addr, m.N, m.NN, m.Flags = from, copy(m.Buffers[0], datagram), copy(m.OOB, oob), 0
	return nil
}

// resume reads the socket again, since who had it is gone.
func (s *Socket) resume(source *net.UnixConn, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = source.Close()
	s.source.Store(nil)
	if s.closed {
		return
	}
	_ = s.UDPConn.SetReadDeadline(s.deadline)
	s.log.Info("the process that had QUIC's socket is gone: this one reads it again", "error", why)
}

// rest reads from where nothing comes until the socket is closed: another process
// reads it, and passes nothing on.
func (s *Socket) rest(source *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	silent, plug, err := pair()
	if err != nil {
		return // the end comes next, and it reads the socket: there is nothing better
	}
	_ = silent.SetReadDeadline(s.deadline)
	s.plug = plug
	s.source.Store(silent)
	_ = source.Close()
	s.log.Warn("this process is passed no more packets of QUIC", "reason", errLeftOut)
}

// sort passes on what belongs to others, and moves the rest to the front. What is
// moved is copied, since each message's buffer is known by its place.
func (s *Socket) sort(ms []ipv4.Message, all []*older) (kept int) {
	for i := range ms {
		m := &ms[i]
		datagram, oob := m.Buffers[0][:m.N], m.OOB[:m.NN]
		if o := find(all, datagram); o != nil {
			o.pass(s.frame[:0], m.Addr, oob, datagram)
			continue
		}
		if to := &ms[kept]; to != m {
			to.N, to.NN = copy(to.Buffers[0], datagram), copy(to.OOB, oob)
			to.Addr, to.Flags = m.Addr, m.Flags
		}
		kept++
	}
	return kept
}

// SetReadDeadline implements net.PacketConn.
func (s *Socket) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	if source := s.source.Load(); source != nil {
		return source.SetReadDeadline(t)
	}
	if s.handing {
		return nil // the reader is being woken; it takes over the deadline
	}
	return s.UDPConn.SetReadDeadline(t)
}

// Close closes the socket for this process. It waits for what Await started.
func (s *Socket) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.closed = true
	for _, conn := range []*net.UnixConn{s.offered, s.source.Load()} {
		if conn != nil {
			_ = conn.Close()
		}
	}
	if s.plug != nil {
		_ = s.plug.Close()
	}
	err := s.UDPConn.Close()
	if all := s.older.Load(); all != nil {
		for _, o := range *all {
			_ = o.conn.Close()
		}
	}
	s.mu.Unlock()
	s.watching.Wait()
	return err
}
