package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// The sizes of the upstream's answers, by the end of the path that asks for them.
const (
	smallPath  = "/100b"
	mediumPath = "/10kb"
	largePath  = "/1mb"
	smallSize  = 100
	mediumSize = 10_000
	largeSize  = 1_000_000
)

// serveUpstream answers requests on a loopback port, which it prints, until ctx
// ends. It is as cheap as it can be, so that the gateway is what limits: it looks
// at a request's first line and its end, and its answers lie ready. It takes
// requests without a body only.
func serveUpstream(ctx context.Context, announce io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	if _, err := fmt.Fprintln(announce, "upstream", listener.Addr()); err != nil {
		return err
	}
	small, medium, large := canned(smallSize), canned(mediumSize), canned(largeSize)
	pick := func(path string) []byte {
		switch {
		case strings.HasSuffix(path, mediumPath):
			return medium
		case strings.HasSuffix(path, largePath):
			return large
		}
		return small
	}
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go answerAll(conn, pick)
	}
}

func canned(size int) []byte {
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", size)
	return append([]byte(head), bytes.Repeat([]byte{'x'}, size)...)
}

// answerAll answers a connection's requests, one after the other, until it ends.
func answerAll(conn net.Conn, pick func(path string) []byte) {
	defer func() { _ = conn.Close() }()
	in := bufio.NewReaderSize(conn, 16<<10)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return
		}
		fields := bytes.Fields(line)
		if len(fields) != 3 {
			return
		}
		answer := pick(string(fields[1]))
		for len(bytes.TrimRight(line, "\r\n")) > 0 {
			if line, err = in.ReadSlice('\n'); err != nil {
				return
			}
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}
