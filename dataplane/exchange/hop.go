package exchange

import (
	"strings"

	"portcullis.dev/portcullis/pkg/httppath"
)

// maxConnectionOptions bounds what one message may list in Connection; honest
// ones list two or three.
const maxConnectionOptions = 32

// DropHopByHop removes the fields that are for one connection only (RFC 9110,
// 7.6.1): those that Connection lists, and those that are so by definition.
// Whoever receives a message calls it before anything of our own is added, so
// that Connection cannot name what we add. It fails, wrapping ErrMalformed, when
// Connection lists too much.
func (h *Header) DropHopByHop() error {
	if _, listed := h.Lookup("Connection"); listed {
		return h.dropListed()
	}
	h.DelFunc(func(f Field) bool { return HopByHop(f.Name) })
	return nil
}

// dropListed is DropHopByHop where there is a Connection field: one of its own
// because of what it takes of the stack.
//
//go:noinline
func (h *Header) dropListed() error {
	var options [maxConnectionOptions]string
	n := 0
	for value := range h.Values("Connection") {
		for option := range strings.SplitSeq(value, ",") {
			if option = strings.Trim(option, " \t"); option == "" {
				continue
			}
			if n == len(options) {
				return malformed("more than %d connection options", maxConnectionOptions)
			}
			options[n] = option
			n++
		}
	}
	h.DelFunc(func(f Field) bool {
		if HopByHop(f.Name) {
			return true
		}
		for _, option := range options[:n] {
			if EqualFold(f.Name, option) {
				return true
			}
		}
		return false
	})
	return nil
}

// HopByHop tells whether a field is for one connection only, or frames the
// message and so is written anew on each.
func HopByHop(name string) bool {
	switch len(name) {
	case 2:
		return EqualFold(name, "TE")
	case 7:
		return EqualFold(name, "Trailer") || EqualFold(name, "Upgrade")
	case 10:
		return EqualFold(name, "Connection") || EqualFold(name, "Keep-Alive")
	case 14:
		return EqualFold(name, "Content-Length") || EqualFold(name, "HTTP2-Settings")
	case 16:
		return EqualFold(name, "Proxy-Connection")
	case 17:
		return EqualFold(name, "Transfer-Encoding")
	case 18:
		return EqualFold(name, "Proxy-Authenticate")
	case 19:
		return EqualFold(name, "Proxy-Authorization")
	}
	return false
}

// SafeName is httppath.SafeName: a field name that no other is taken for.
func SafeName(name string) bool { return httppath.SafeName(name) }
