package listen

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"portcullis.dev/portcullis/dataplane/listen/relay"
)

// PacketFiles begins the names of what a successor is passed for HTTP/3; the name
// of the socket and relay's own follow.
const PacketFiles = "quic/"

// Packets returns what a process that takes over needs for HTTP/3, for its
// Config.Packets: the UDP sockets, by names of this package's. The caller closes
// them. This process goes on to read the sockets until HandOver; what an earlier
// call returned is worth nothing any more.
func (l *Listeners) Packets() (map[string]*os.File, error) { return l.quic.offer() }

// inherit takes over what offer returned in the process before.
func (q *quic) inherit(files map[string]*os.File) error {
	for full, file := range files {
		rest, ok := strings.CutPrefix(full, PacketFiles)
		name, own, _ := strings.Cut(rest, "/")
		if !ok || q.listeners.sockets[name] == nil {
			return fmt.Errorf("%q was passed, which belongs to no socket here", full)
		}
		if q.inherited[name] == nil {
			q.inherited[name] = map[string]*os.File{}
		}
		q.inherited[name][own] = file
	}
	return nil
}

// offer returns what a successor needs to take over the ports that are served.
func (q *quic) offer() (map[string]*os.File, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	files := map[string]*os.File{}
	for name, one := range q.running {
		pc := one.port.Load()
		if pc == nil {
			continue
		}
		own, err := pc.Offer()
		if errors.Is(err, net.ErrClosed) {
			continue
		}
		if err != nil {
			relay.CloseFiles(files)
			return nil, fmt.Errorf("HTTP/3 on %q: %w", name, err)
		}
		for file := range own {
			files[PacketFiles+name+"/"+file] = own[file]
		}
	}
	return files, nil
}

// handOver lets who got the offer read what is served.
func (q *quic) handOver() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, one := range q.running {
		if pc := one.port.Load(); pc != nil {
			pc.HandOver()
		}
	}
}

// leave closes what was inherited and never wanted.
func (q *quic) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for name := range q.inherited {
		relay.CloseFiles(q.inherited[name])
		delete(q.inherited, name)
	}
}
