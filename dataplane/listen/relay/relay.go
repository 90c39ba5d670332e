// Package relay shares one UDP socket of QUIC between a process and those that it
// succeeds. TCP needs none of it: there the kernel knows which process has which
// connection. Of a UDP socket that two processes have, either gets any packet.
//
// So one process reads, the newest, and passes on what belongs to one before it.
// Every connection ID that a process issues begins with a tag that it drew for
// itself (RFC 9000, 5.1 leaves the contents to the server), so each packet but a
// client's first ones says whose it is; those first ones are for the newest. What
// is passed on goes through a socket pair of which the successor inherited one
// end: nobody else can have it, and it ends with the process that has the other.
// Answers are sent on the UDP socket by whoever has the connection.
//
// The predecessor reads until it hands over, and says so through the pair once it
// has read for the last time: there are never two readers. When the last successor
// is gone it reads again, unless it was told that it is merely left out. A successor inherits the ends of all that still drain,
// not only that of the one before it, so none needs another to live.
//
// The package knows where in a packet its connection ID stands (RFC 8999), and
// nothing else of QUIC.
package relay

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/quic-go/quic-go"
)

const (
	tagLength = 4
	// idLength is a length that few clients choose for the IDs that they make up
	// for a server: one that did would hit a tag once in 2^32.
	idLength = 10
	// maxOlder bounds the processes that are passed packets at once. One more, the
	// oldest is left without: it has had as many hand-overs' time to drain.
	maxOlder = 4
)

// tag begins the connection IDs of one process.
type tag [tagLength]byte

func newTag() (t tag) {
	_, _ = rand.Read(t[:]) // never fails
	return t
}

func (t tag) String() string { return hex.EncodeToString(t[:]) }

func parseTag(text string) (t tag, err error) {
	b, err := hex.DecodeString(text)
	if err == nil && len(b) != tagLength {
		err = errors.New("of another length")
	}
	if err != nil {
		return t, fmt.Errorf("the tag %q: %w", text, err)
	}
	return tag(b), nil
}

// tagOf returns the tag in a datagram's first destination connection ID, and
// whether there is one: a client's own ID has none, unless by chance.
func tagOf(packet []byte) (t tag, ok bool) {
	const (
		longForm = 0x80 // RFC 8999, 5.1 and 5.2
		idLenAt  = 5
	)
	switch {
	case len(packet) == 0:
		return t, false
	case packet[0]&longForm == 0:
		packet = packet[1:]
	case len(packet) <= idLenAt || packet[idLenAt] != idLength:
		return t, false
	default:
		packet = packet[idLenAt+1:]
	}
	if len(packet) < idLength {
		return t, false
	}
	return tag(packet), true
}

// Keys are what all processes that succeed each other on a socket share, so that a
// proof of address and a stateless reset mean the same whoever made them.
type Keys struct {
	Token quic.TokenGeneratorKey
	Reset quic.StatelessResetKey
}

func newKeys() (k Keys) {
	_, _ = rand.Read(k.Token[:])
	_, _ = rand.Read(k.Reset[:])
	return k
}

// ids makes connection IDs with a tag.
type ids tag

// GenerateConnectionID implements quic.ConnectionIDGenerator. Safe for concurrent
// use.
func (i ids) GenerateConnectionID() (quic.ConnectionID, error) {
	var b [idLength]byte
	copy(b[:], i[:])
	_, _ = rand.Read(b[tagLength:])
	return quic.ConnectionIDFromBytes(b[:]), nil
}

// ConnectionIDLen implements quic.ConnectionIDGenerator.
func (i ids) ConnectionIDLen() int { return idLength }

// What goes through a socket pair. The first byte says which.
const (
	// handedOver, from the predecessor, once: it has read for the last time. The
	// keys follow.
	handedOver byte = 1
	// passedOn, to a predecessor: a datagram with all that the kernel said of it.
	passedOn byte = 2
	// leftOut, to a predecessor, last: nothing is passed on to it any more, and the
	// socket is read by another.
	leftOut byte = 3
)

// maxFrame holds a datagram that QUIC may send here, and what is said of it.
const maxFrame = 2048

func appendKeys(b []byte, k Keys) []byte {
	return append(append(append(b, handedOver), k.Token[:]...), k.Reset[:]...)
}

func parseKeys(b []byte) (k Keys, err error) {
	if len(b) != 1+len(k.Token)+len(k.Reset) || b[0] != handedOver {
		return k, errors.New("what the predecessor said on handing over is not understood")
	}
	copy(k.Reset[:], b[1+copy(k.Token[:], b[1:]):])
	return k, nil
}

// appendPacket appends a packet's frame: the lengths of address and control data,
// these, and the datagram.
func appendPacket(b []byte, from *net.UDPAddr, oob, datagram []byte) ([]byte, error) {
	at := len(b)
	b, err := from.AddrPort().AppendBinary(append(b, passedOn, 0, 0))
	if err != nil {
		return nil, err
	}
	address := len(b) - at - 3
	if address > 255 || len(oob) > 255 {
		return nil, errors.New("address or control data is too long")
	}
	b[at+1], b[at+2] = byte(address), byte(len(oob))
	return append(append(b, oob...), datagram...), nil
}

var (
	errFrame   = errors.New("a packet that was passed on is not understood")
	errLeftOut = errors.New("too many processes came after this one")
)

// parsePacket splits what appendPacket made. The parts lie in b.
func parsePacket(b []byte) (from *net.UDPAddr, oob, datagram []byte, err error) {
	if len(b) < 3 || b[0] != passedOn || len(b) < 3+int(b[1])+int(b[2]) {
		return nil, nil, nil, errFrame
	}
	var at netip.AddrPort
	if err := at.UnmarshalBinary(b[3 : 3+int(b[1])]); err != nil {
		return nil, nil, nil, errors.Join(errFrame, err)
	}
	rest := b[3+int(b[1]):]
	return net.UDPAddrFromAddrPort(at), rest[:b[2]], rest[b[2]:], nil
}
