package relay

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// older is a process that is passed its packets.
type older struct {
	tag  tag
	conn *net.UnixConn
	raw  syscall.RawConn

	passed, dropped atomic.Uint64
}

func newOlder(t tag, file *os.File) (*older, error) {
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("no end of a socket pair"), conn.Close())
	}
	raw, err := unix.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, unix.Close())
	}
	// What waits there is what the kernel holds for it, no more.
	_ = unix.SetWriteBuffer(passBuffer)
	return &older{tag: t, conn: unix, raw: raw}, nil
}

// passBuffer is what may wait for a process, in bytes of the kernel's; it may grant
// less.
const passBuffer = 4 << 20

// find returns whom a datagram is to be passed on to, or nil.
func find(all []*older, datagram []byte) *older {
	t, ok := tagOf(datagram)
	if !ok {
		return nil
	}
	for _, o := range all {
		if o.tag == t {
			return o
		}
	}
	return nil
}

// pass passes a datagram on; b is room for its frame. It never waits: what there is
// no room for is lost, as it may be on any network.
func (o *older) pass(b []byte, from net.Addr, oob, datagram []byte) {
	udp, ok := from.(*net.UDPAddr)
	if !ok {
		return
	}
	b, err := appendPacket(b, udp, oob, datagram)
	if err == nil {
		// Nil is no address: the pair is connected.
		werr := o.raw.Write(func(fd uintptr) bool {
			_, err = syscall.SendmsgN(int(fd), b, nil, nil, 0)
			return true
		})
		err = errors.Join(err, werr)
	}
	if err != nil {
		o.dropped.Add(1)
		return
	}
	o.passed.Add(1)
}

// leaveOut tells the process that it is passed nothing any more, though the socket
// has its reader.
func (o *older) leaveOut() {
	_ = o.conn.SetWriteDeadline(time.Now().Add(leaveOutWait))
	_, _ = o.conn.Write([]byte{leftOut})
}

// leaveOutWait bounds the wait of a hand-over for a process that does not take its
// packets.
const leaveOutWait = 100 * time.Millisecond
