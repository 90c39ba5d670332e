package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/dataplane/limit"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
)

const (
	// kinPatience bounds the hand-over of buckets, and one write.
	kinPatience = 5 * time.Second
	// kinQueue is how many messages may wait for the other process; what finds no
	// room is told again.
	kinQueue = 64
	// kinMost bounds one message.
	kinMost = 1 << 20
)

// kin exchanges totals with the processes of the same node before and after this
// one, over sockets that one inherited from the other: also without a bus. Each
// hears of the other as of any peer. One of them at a time, the newest that has
// taken over, answers other nodes' questions.
type kin struct {
	limiter *limit.Limiter
	node    string
	boot    uint64
	log     *slog.Logger

	// charged: this process answers. It is set under mu.
	charged atomic.Bool
	running sync.WaitGroup
	mu      sync.Mutex
	// Guarded by mu. yielded: a successor answers, whatever becomes of others.
	links           map[*kinLink]struct{}
	closed, yielded bool
}

// kinLink is the socket to one other process.
type kinLink struct {
	conn net.Conn
	send chan []byte
}

func newKin(n *Node) *kin {
	k := &kin{limiter: n.limiter, node: n.cfg.Name, boot: n.boot, log: n.cfg.Log, links: map[*kinLink]struct{}{}}
	k.charged.Store(n.cfg.Limits == nil)
	return k
}

// publish tells the other processes, if there are any. It does not block.
func (k *kin) publish(m *busv1.Spent) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.links) == 0 {
		return
	}
	frame := binary.BigEndian.AppendUint64(make([]byte, 4, 64), k.boot)
	frame, err := proto.MarshalOptions{}.MarshalAppend(frame, m)
	if err != nil {
		return
	}
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	k.queue(frame)
}

// queue sends a frame to all, as far as there is room. The caller holds mu.
func (k *kin) queue(frame []byte) {
	for l := range k.links {
		l.offer(frame)
	}
}

// offer reports false when there is no room. The caller holds kin.mu.
func (l *kinLink) offer(frame []byte) bool {
	select {
	case l.send <- frame:
		return true
	default:
		return false
	}
}

// yield leaves it to the successor to answer, which an empty frame tells. A
// process before this one has yielded itself.
func (k *kin) yield() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.yielded = true
	k.charged.Store(false)
	for l := range k.links {
		for !l.offer(make([]byte, 4)) {
			// Totals are told again, this is not.
			select {
			case <-l.send:
			default:
			}
		}
	}
}

// charge has this process answer, unless it has left that to a successor.
func (k *kin) charge() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.charged.Store(!k.yielded)
}

// offer returns the end of a new link for a successor, which gets the buckets when
// it asks. The caller closes it.
func (k *kin) offer() (*os.File, error) {
	ours, theirs, err := streamPair()
	if err != nil {
		return nil, err
	}
	l := &kinLink{ours, make(chan []byte, kinQueue)}
	// Before the buckets are written, so that no total is missed.
	if !k.add(l) {
		return nil, errors.Join(net.ErrClosed, ours.Close(), theirs.Close())
	}
	k.running.Go(func() {
		defer ours.Close()
		if err := k.lend(l); err != nil {
			k.remove(l)
			return
		}
		k.exchange(l)
	})
	return theirs, nil
}

// lend writes the buckets once the successor asks.
func (k *kin) lend(l *kinLink) error {
	var ask [1]byte
	if _, err := io.ReadFull(l.conn, ask[:]); err != nil {
		return err // no successor came of it
	}
	_ = l.conn.SetWriteDeadline(time.Now().Add(kinPatience))
	err := k.limiter.WriteState(l.conn, time.Now())
	if err != nil {
		k.log.Warn("the successor begins with fresh limits", "error", err)
	}
	return err
}

// take gets the buckets of the process before, and stays in touch with it.
func (k *kin) take(file *os.File) error {
	conn, err := net.FileConn(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	l := &kinLink{conn, make(chan []byte, kinQueue)}
	if !k.add(l) {
		return errors.Join(net.ErrClosed, conn.Close())
	}
	_ = conn.SetDeadline(time.Now().Add(kinPatience))
	if _, err = conn.Write([]byte{1}); err == nil {
		err = k.limiter.ReadState(byteReader{conn}, time.Now())
	}
	k.running.Go(func() {
		defer conn.Close()
		defer k.charge()
		if err != nil {
			k.remove(l)
			return
		}
		_ = conn.SetDeadline(time.Time{})
		k.exchange(l)
	})
	return err
}

// byteReader keeps gob from reading past what it decodes.
type byteReader struct{ io.Reader }

// ReadByte implements io.ByteReader.
func (r byteReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

func (k *kin) add(l *kinLink) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return false
	}
	k.links[l] = struct{}{}
	return true
}

func (k *kin) remove(l *kinLink) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, there := k.links[l]; there {
		delete(k.links, l)
		close(l.send)
	}
}

// exchange sends and receives totals until either end is closed.
func (k *kin) exchange(l *kinLink) {
	var writing sync.WaitGroup
	defer writing.Wait()
	writing.Go(func() {
		for frame := range l.send {
			_ = l.conn.SetWriteDeadline(time.Now().Add(kinPatience))
			if _, err := l.conn.Write(frame); err != nil {
				_ = l.conn.Close() // ends the reader
				for range l.send {
				}
				return
			}
		}
		// The last totals have been sent.
		_ = l.conn.Close()
	})
	defer k.remove(l)
	for {
		boot, m, err := readKin(l.conn)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				k.log.Debug("the exchange with another process of this node ended", "error", err)
			}
			return
		}
		if m == nil {
			k.charge()
			continue
		}
		k.limiter.Receive(k.node, boot, m, time.Now())
	}
}

// readKin reads one message; nil says that this process answers from now on.
func readKin(r io.Reader) (boot uint64, m *busv1.Spent, err error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n == 0 {
		return 0, nil, nil
	}
	if n < 8 || n > kinMost {
		return 0, nil, fmt.Errorf("a message of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, nil, err
	}
	m = &busv1.Spent{}
	return binary.BigEndian.Uint64(b), m, proto.Unmarshal(b[8:], m)
}

// run waits until ctx ends, then sends what waits and ends.
func (k *kin) run(ctx context.Context) error {
	<-ctx.Done()
	k.mu.Lock()
	k.closed = true
	for l := range k.links {
		delete(k.links, l)
		close(l.send)
		_ = l.conn.SetReadDeadline(time.Now())
	}
	k.mu.Unlock()
	k.running.Wait()
	return nil
}

// streamPair makes a socket pair.
func streamPair() (ours net.Conn, theirs *os.File, err error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("a socket pair: %w", err)
	}
	own := os.NewFile(uintptr(fds[0]), "pair")
	defer own.Close()
	theirs = os.NewFile(uintptr(fds[1]), "pair")
	if ours, err = net.FileConn(own); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}
