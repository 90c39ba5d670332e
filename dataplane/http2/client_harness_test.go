package http2

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// wanted is a request of the method without a body.
func wanted(method, path string, fields ...exchange.Field) *exchange.Request {
	return &exchange.Request{Method: method, Path: path, Authority: "a.example", Header: exchange.HeaderOf(fields...)}
}

// asking is a call that may take long.
func asking(r *exchange.Request) *http1.Call {
	now := time.Now()
	return &http1.Call{Context: context.Background(), Request: r, Now: now, Deadline: now.Add(patience)}
}

// ended is a connection's end.
type ended struct {
	*ClientConn
	over chan struct{}
}

// connect makes a connection to the address, which ends with the test.
func connect(t testing.TB, address string, config ...ClientConfig) *ended {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if len(config) == 0 {
		config = []ClientConfig{{Scheme: "http"}}
	}
	return greet(t, nc, config[0])
}

var errTestEnds = errors.New("the test ends")

func greet(t testing.TB, nc net.Conn, config ClientConfig) *ended {
	t.Helper()
	over := make(chan struct{})
	config.Ended = func(*ClientConn) { close(over) }
	c := &ended{NewClientConn(nc, config), over}
	t.Cleanup(func() {
		c.Cut(errTestEnds)
		<-over
	})
	return c
}

// dies waits until the connection has ended.
func (c *ended) dies(t testing.TB) {
	t.Helper()
	select {
	case <-c.over:
	case <-time.After(patience):
		t.Fatal("the connection does not end")
	}
}

// ask sends a request and reads its answer to the end.
func (c *ended) ask(t testing.TB, call *http1.Call) (status int, body string, err error) {
	t.Helper()
	s := c.Stream()
	if s == nil {
		t.Fatal("the connection takes no request")
	}
	resp, done, err := s.Do(call)
	if err != nil {
		return 0, "", err
	}
	defer done(nil)
	var text []byte
	if resp.Body.Reader != nil {
		text, err = io.ReadAll(resp.Body.Reader)
	}
	return resp.Status, string(text), err
}

// scripted is an upstream of frames: each connection is handed to the script.
func scriptedUpstream(t testing.TB, script func(*raw)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer nc.Close()
				nc.SetDeadline(time.Now().Add(patience))
				script(rawOver(t, nc))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		served.Wait()
	})
	return ln.Addr().String()
}

// canned answers every request whole and at once, and allocates nothing.
func canned(t testing.TB, block []byte, body int) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer nc.Close()
				answerCanned(nc, block, body)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		served.Wait()
	})
	return ln.Addr().String()
}

func answerCanned(nc net.Conn, block []byte, body int) {
	in, out := make([]byte, 0, 64<<10), make([]byte, 0, 64<<10)
	data := make([]byte, body)
	out = append(appendFrameHeader(out, 0, h2.FrameSettings, 0, 0), appendFrameHeader(nil, 0, h2.FrameSettings, h2.FlagSettingsAck, 0)...)
	skip := len(Preface)
	for {
		n, err := nc.Read(in[len(in):cap(in)])
		if err != nil {
			return
		}
		in = in[:len(in)+n]
		at := 0
		if skip > 0 {
			if len(in) < skip {
				continue
			}
			at, skip = skip, 0
		}
		for len(in)-at >= frameHeader {
			size := frameHeader + (int(in[at])<<16 | int(in[at+1])<<8 | int(in[at+2]))
			if len(in)-at < size {
				break
			}
			kind, flags, id := h2.FrameType(in[at+3]), h2.Flags(in[at+4]), binary.BigEndian.Uint32(in[at+5:])
			if (kind == h2.FrameHeaders || kind == h2.FrameData) && flags.Has(h2.FlagDataEndStream) {
				out = append(appendFrameHeader(out, len(block), h2.FrameHeaders, h2.FlagHeadersEndHeaders, id), block...)
				out = append(appendFrameHeader(out, body, h2.FrameData, h2.FlagDataEndStream, id), data...)
			}
			at += size
		}
		in = in[:copy(in, in[at:])]
		if len(out) > 0 {
			if _, err := nc.Write(out); err != nil {
				return
			}
			out = out[:0]
		}
	}
}

// welcome takes the preface and greets.
func (r *raw) welcome(settings ...h2.Setting) {
	if _, err := io.ReadFull(r.Conn, make([]byte, len(Preface))); err == nil {
		_ = r.WriteSettings(settings...)
	}
}

// requested reads until a request's HEADERS, whose fields are left in r.fields; 0
// when the connection ends.
func (r *raw) requested() uint32 {
	for {
		frame, err := r.ReadFrame()
		if err != nil {
			return 0
		}
		if f, ok := frame.(*h2.HeadersFrame); ok {
			r.fields = nil
			_, _ = r.decoder.Write(f.HeaderBlockFragment())
			_ = r.decoder.Close()
			return f.StreamID
		}
	}
}

// says writes a head without minding errors: the client may have left.
func (r *raw) says(id uint32, end bool, pairs ...string) {
	_ = r.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: r.encode(pairs...), EndStream: end, EndHeaders: true})
}

// rest reads until the client has closed the connection.
func (r *raw) rest() { _, _ = io.Copy(io.Discard, r.Conn) }
