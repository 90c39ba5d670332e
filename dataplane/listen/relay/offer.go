package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"
)

// The names under which a socket and its pairs are passed to a successor.
const (
	socketFile = "socket"
	// beforeFile is followed by how many hand-overs ago, from 0 on, and the tag.
	beforeFile = "before-%d-%s"
)

// Offer returns what a successor needs, by name: duplicates of the socket and of
// the ends of pairs to all that still drain, and the end of a new pair. The caller
// passes them on and closes them. Nothing changes until HandOver; a later Offer
// replaces this one.
func (s *Socket) Offer() (map[string]*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	files := map[string]*os.File{}
	ours, theirs, err := pair()
	if err == nil {
		files[fmt.Sprintf(beforeFile, 0, s.own)] = theirs
		files[socketFile], err = duplicate(s.UDPConn)
	}
	if all := s.older.Load(); err == nil && all != nil {
		most := min(len(*all), maxOlder-1)
		s.leaving = (*all)[most:]
		for i, o := range (*all)[:most] {
			if files[fmt.Sprintf(beforeFile, i+1, o.tag)], err = duplicate(o.conn); err != nil {
				break
			}
		}
	}
	if err != nil {
		if ours != nil {
			_ = ours.Close()
		}
		CloseFiles(files)
		return nil, err
	}
	if s.offered != nil {
		_ = s.offered.Close()
	}
	s.offered = ours
	return files, nil
}

// CloseFiles closes what Offer returned.
func CloseFiles(files map[string]*os.File) {
	for _, file := range files {
		if file != nil {
			_ = file.Close()
		}
	}
}

// pair makes a socket pair that keeps the bounds of what is sent and tells when its
// other end is gone.
func pair() (ours *net.UnixConn, theirs *os.File, err error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("a socket pair: %w", err)
	}
	first := os.NewFile(uintptr(fds[0]), "pair")
	defer first.Close()
	theirs = os.NewFile(uintptr(fds[1]), "pair")
	conn, err := net.FileConn(first)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return conn.(*net.UnixConn), theirs, nil
}

// duplicate returns another descriptor, without making the socket a blocking one.
func duplicate(conn syscall.Conn) (*os.File, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if cerr := raw.Control(func(own uintptr) {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		if fd, err = syscall.Dup(int(own)); err == nil {
			syscall.CloseOnExec(fd)
		}
	}); cerr != nil || err != nil {
		return nil, errors.Join(cerr, err)
	}
	return os.NewFile(uintptr(fd), "socket"), nil
}

// HandOver lets who got the last Offer read. From then on this process gets what
// that one passes on. It returns once that is so, so that whoever is told to
// connect anew comes to the successor, or after handOverWait, when nobody reads.
// Without an Offer it does nothing.
func (s *Socket) HandOver() {
	if !s.wakeReader() {
		return
	}
	late := time.NewTimer(handOverWait)
	defer late.Stop()
	select {
	case <-s.handed:
	case <-late.C:
	}
}

// handOverWait bounds the wait for the reader.
const handOverWait = time.Second

func (s *Socket) wakeReader() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.offered == nil {
		return false
	}
	s.handing = true
	// Wakes the reader, who does it: only it knows that it reads no more.
	_ = s.UDPConn.SetReadDeadline(time.Unix(1, 0))
	return true
}

// handOver is HandOver's part in the reader. It reports false if nothing is to be
// handed over.
func (s *Socket) handOver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.handing || s.closed {
		return false
	}
	defer func() {
		select {
		case s.handed <- struct{}{}:
		default:
		}
	}()
	to := s.offered
	s.offered, s.handing = nil, false
	_ = to.SetReadDeadline(s.deadline)
	if _, err := to.Write(appendKeys(nil, s.keys)); err != nil {
		// It is gone already.
		_ = to.Close()
		_ = s.UDPConn.SetReadDeadline(s.deadline)
		return true
	}
	s.source.Store(to)
	// The successor passes on from now on.
	if all := s.older.Swap(nil); all != nil {
		for _, o := range s.leaving {
			o.leaveOut()
		}
		for _, o := range *all {
			_ = o.conn.Close()
		}
	}
	s.leaving = nil
	return true
}

// Inherit makes a Socket of what Offer returned in the process before; it takes
// over the files.
func Inherit(files map[string]*os.File, log *slog.Logger) (*Socket, error) {
	defer CloseFiles(files)
	if files[socketFile] == nil {
		return nil, errors.New("a UDP socket was not passed")
	}
	pc, err := net.FilePacketConn(files[socketFile])
	if err != nil {
		return nil, err
	}
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(errors.New("what was passed is no UDP socket"), pc.Close())
	}
	s := newSocket(conn, log)
	if err := s.inherit(files); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// inherit takes the pairs, the newest process first.
func (s *Socket) inherit(files map[string]*os.File) error {
	var all []*older
	defer func() {
		if len(all) > 0 {
			s.older.Store(&all)
		}
	}()
	for i := range maxOlder {
		for name, file := range files {
			var ago int
			var text string
			if n, _ := fmt.Sscanf(name, beforeFile, &ago, &text); n != 2 || ago != i {
				continue
			}
			t, err := parseTag(text)
			if err != nil {
				return err
			}
			o, err := newOlder(t, file)
			if err != nil {
				return err
			}
			if all = append(all, o); i == 0 {
				s.first = o
			}
		}
	}
	return nil
}
