package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A successor that comes to nothing leaves the sockets as they were: this process
// goes on to accept, and ends when it is told to, without waiting for a client.
func TestSocketsOutliveAFailedSuccession(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	owned := &sockets{clients: map[string]net.Listener{"http": ln}, lock: lock}
	held := 0
	s := succession{
		binary: "/bin/false", files: owned.files, log: slog.New(slog.DiscardHandler),
		pause: func() { held++ }, resume: func() { held-- },
	}
	if pid, err := s.start(context.Background()); err == nil {
		t.Fatal("a successor that ended at once is ready:", pid)
	}
	if held != 0 {
		t.Error("the data directory is still kept off")
	}
	accepted, ended := make(chan net.Conn, 1), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	defer (<-accepted).Close()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		ln.Close()
	}()
	for _, done := range []chan struct{}{closed, ended} {
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("accepting goes on after Close")
		}
	}
}
