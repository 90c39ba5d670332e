package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"portcullis.dev/portcullis/dataplane/listen"
)

// Sockets come from the command line, from a service manager, or from the process
// that this one succeeds. Whoever passes them names them: the environment holds
// the names, in the order of the descriptors.
const (
	// firstPassed is the first descriptor after the standard three.
	firstPassed = 3
	// successionEnv is set for a successor: names joined by ':'.
	successionEnv = "PORTCULLIS_SUCCESSION"
	// readyPipe, lockFile and limitsPipe are passed to a successor beside the sockets.
	readyPipe = "#ready"
	lockFile  = "#lock"
	// limitsPipe brings a successor what was spent.
	limitsPipe = "#limits"
	// metricsSocket is the name of the socket for metrics and probes, debugSocket
	// that of the one for profiles.
	metricsSocket = "metrics"
	debugSocket   = "debug"
)

// passed are the descriptors that this process was started with, by name.
type passed struct {
	files     map[string]*os.File
	successor bool
}

// inherit takes over what was passed from the descriptor first on: by a
// predecessor, or by a service manager that listens for us (sd_listen_fds(3)). The
// variables are removed, so that no child takes them for its own.
func inherit(first int) (p *passed, err error) {
	p = &passed{files: map[string]*os.File{}}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	var names []string
	switch {
	case os.Getenv(successionEnv) != "":
		p.successor = true
		names = strings.Split(os.Getenv(successionEnv), ":")
	case os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()):
		n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
		if err != nil || n < 0 || n > 64 {
			return p, fmt.Errorf("LISTEN_FDS is %q: expected the number of sockets that the service manager passed", os.Getenv("LISTEN_FDS"))
		}
		if names = strings.Split(os.Getenv("LISTEN_FDNAMES"), ":"); n == 1 && (len(names) != 1 || !socketName.MatchString(names[0])) {
			// Without FileDescriptorName= it is named after its unit.
			names = []string{"http"}
		}
		if len(names) != n {
			return p, fmt.Errorf("%d sockets were passed with the names %q: expected FileDescriptorName= for each", n, names)
		}
	}
	for _, name := range []string{successionEnv, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return p, err
		}
	}
	for i, name := range names {
		if p.files[name] != nil {
			return p, fmt.Errorf("two sockets with the name %q were passed: expected each name once", name)
		}
		fd := first + i
		syscall.CloseOnExec(fd)
		p.files[name] = os.NewFile(uintptr(fd), name)
	}
	return p, nil
}

// names lists the sockets for clients that were passed.
func (p *passed) names() []string {
	var names []string
	for name := range p.files {
		if socketName.MatchString(name) && name != metricsSocket && name != debugSocket {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// packets takes what was passed for HTTP/3.
func (p *passed) packets() map[string]*os.File {
	taken := map[string]*os.File{}
	for name := range p.files {
		if strings.HasPrefix(name, listen.PacketFiles) {
			taken[name] = p.take(name)
		}
	}
	return taken
}

// listen returns the socket of the name that was passed, or opens address.
func (p *passed) listen(name, address string) (net.Listener, error) {
	file := p.take(name)
	if file == nil {
		return net.Listen("tcp", address)
	}
	ln, err := net.FileListener(file)
	if err != nil {
		err = fmt.Errorf("the socket %q that was passed is none that can be listened on: %w", name, err)
	}
	return ln, errors.Join(err, file.Close())
}

// take hands out what was passed under the name; nil when nothing was.
func (p *passed) take(name string) *os.File {
	file := p.files[name]
	delete(p.files, name)
	return file
}

// close closes what nobody took.
func (p *passed) close() {
	for _, file := range p.files {
		_ = file.Close()
	}
}

// duplicate returns another descriptor of the same open file, with its lock.
func duplicate(file *os.File) (*os.File, error) {
	fd, err := syscall.Dup(int(file.Fd()))
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// duplicateSocket returns another descriptor of a socket. Unlike that of
// TCPListener.File, it does not become a blocking one as it is passed on, and with
// it the socket of this process: what then waits in accept ends by no Close.
func duplicateSocket(ln *net.TCPListener) (file *os.File, err error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if cerr := raw.Control(func(own uintptr) { fd, err = syscall.Dup(int(own)) }); cerr != nil || err != nil {
		return nil, errors.Join(cerr, err)
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), ln.Addr().String()), nil
}

// left refuses what was passed and is not used: a socket on which nobody answers
// would hang its clients.
func (p *passed) left() error {
	var names []string
	for name := range p.files {
		if name != readyPipe && name != lockFile && name != limitsPipe {
			names = append(names, strconv.Quote(name))
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return fmt.Errorf("sockets that nothing here serves were passed: %s", strings.Join(names, ", "))
}
