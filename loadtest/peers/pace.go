package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// paced is what an open-loop sender saw.
type paced struct {
	Requests int           `json:"requests"`
	P50      time.Duration `json:"p50_ns"`
	P99      time.Duration `json:"p99_ns"`
}

// pace sends GETs at a fixed rate, whatever the answers take, and prints what it
// saw as JSON. Latency counts from when a request was due: a gateway that stalls
// cannot hide the requests that it kept from being sent (coordinated omission).
// One thread does all of it, without garbage: what it needs itself is in every
// latency.
func pace(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("pace", flag.ContinueOnError)
	address := flags.String("address", "", "address of the gateway")
	path := flags.String("path", "/", "path of every request")
	rate := flags.Float64("rate", 1000, "requests a second, over all connections")
	connections := flags.Int("connections", 64, "connections")
	duration := flags.Duration("duration", 5*time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *rate <= 0 || *connections < 1 {
		return errors.New("-rate and -connections must be positive")
	}
	ctx, cancel := context.WithTimeout(ctx, *duration+20*time.Second)
	defer cancel()
	p := &pacer{request: fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", *path, *address), interval: time.Duration(float64(time.Second) / *rate)}
	defer p.close()
	for range *connections {
		if err := p.dial(ctx, *address); err != nil {
			return err
		}
	}
	total := max(1, int(*rate*duration.Seconds()))
	p.took = make([]time.Duration, 0, total)
	if err := p.run(ctx, total); err != nil {
		return err
	}
	slices.Sort(p.took)
	return json.NewEncoder(out).Encode(paced{total, quantile(p.took, 0.5), quantile(p.took, 0.99)})
}

// pacer sends on many connections in turn.
type pacer struct {
	request  []byte
	interval time.Duration
	conns    []*pacedConn
	polled   []unix.PollFd
	took     []time.Duration
}

// pacedConn is one connection; it has one request in flight at most.
type pacedConn struct {
	file *os.File
	// due is when the requests were due that are not answered yet; the first is in
	// flight.
	due []time.Time
	// have is what has come of the answer.
	have []byte
}

func (p *pacer) dial(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	file, err := conn.(*net.TCPConn).File()
	if err := errors.Join(err, conn.Close()); err != nil {
		return err
	}
	p.conns = append(p.conns, &pacedConn{file: file, have: make([]byte, 0, 4096)})
	// Fd makes the descriptor blocking; it is read from only when something is there.
	p.polled = append(p.polled, unix.PollFd{Fd: int32(file.Fd()), Events: unix.POLLIN})
	return nil
}

func (p *pacer) close() {
	for _, c := range p.conns {
		_ = c.file.Close()
	}
}

// run sends so many requests and returns when all are answered.
func (p *pacer) run(ctx context.Context, total int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The kernel may otherwise let a sleeper sleep 50 µs longer.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	began := time.Now()
	for sent := 0; len(p.took) < total; {
		now := time.Now()
		next := began.Add(time.Duration(sent) * p.interval)
		for ; sent < total && !next.After(now); next = began.Add(time.Duration(sent) * p.interval) {
			c := p.conns[sent%len(p.conns)]
			c.due = append(c.due, next)
			if len(c.due) == 1 {
				if err := p.send(sent % len(p.conns)); err != nil {
					return err
				}
			}
			sent++
		}
		wait := 100 * time.Millisecond
		if sent < total {
			wait = min(wait, max(0, time.Until(next)))
		}
		timeout := unix.NsecToTimespec(int64(wait))
		ready, err := unix.Ppoll(p.polled, &timeout, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("ppoll: %w", err)
		}
		for i := 0; i < len(p.polled) && ready > 0; i++ {
			if p.polled[i].Revents == 0 {
				continue
			}
			if err := p.receive(i); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (p *pacer) send(i int) error {
	if _, err := unix.Write(int(p.polled[i].Fd), p.request); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	return nil
}

// receive reads what has come on a connection; after a whole answer the next
// request goes out that was due meanwhile.
func (p *pacer) receive(i int) error {
	c := p.conns[i]
	n, err := unix.Read(int(p.polled[i].Fd), c.have[len(c.have):cap(c.have)])
	switch {
	case errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return fmt.Errorf("receiving: %w", err)
	case n == 0:
		return fmt.Errorf("the answer ends after %d bytes: %.100q", len(c.have), c.have)
	}
	c.have = c.have[:len(c.have)+n]
	size, err := answerSize(c.have)
	if err != nil {
		return err
	}
	switch {
	case size > cap(c.have) || size == 0 && len(c.have) == cap(c.have):
		return fmt.Errorf("the answer is longer than %d bytes", cap(c.have))
	case size == 0 || len(c.have) < size:
		return nil
	case len(c.have) > size || len(c.due) == 0:
		return fmt.Errorf("more than the answer has come: %.100q", c.have[size:])
	}
	p.took = append(p.took, time.Since(c.due[0]))
	c.have, c.due = c.have[:0], slices.Delete(c.due, 0, 1)
	if len(c.due) > 0 {
		return p.send(i)
	}
	return nil
}

// answerSize is how long an answer is with its body, 0 while its header is not
// complete. Only a 200 with a Content-Length is expected here.
func answerSize(have []byte) (int, error) {
	end := bytes.Index(have, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, nil
	}
	status, fields, _ := bytes.Cut(have[:end], []byte("\r\n"))
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("answered %q", status)
	}
	for len(fields) > 0 {
		var field []byte
		field, fields, _ = bytes.Cut(fields, []byte("\r\n"))
		if name, value, _ := bytes.Cut(field, []byte(":")); bytes.EqualFold(name, []byte("Content-Length")) {
			n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			if err != nil || n < 0 {
				return 0, fmt.Errorf("answered with %q", field)
			}
			return end + 4 + n, nil
		}
	}
	return 0, errors.New("the answer has no Content-Length")
}
