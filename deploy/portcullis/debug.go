package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// serveDebug serves profiles of this process (/debug/pprof/) until the returned
// function is called. A profile shows what clients send and costs processor time,
// so it is given to this machine alone, by address and by name: a page of
// somewhere else that a browser here shows does not reach it. Without a listener
// it serves nothing.
func serveDebug(listener net.Listener) (stop func() error, err error) {
	if listener == nil {
		return func() error { return nil }, nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	server := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			host, _, err := net.SplitHostPort(req.Host)
			if err != nil {
				host = req.Host
			}
			if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
				http.Error(w, "only under a loopback address", http.StatusForbidden)
				return
			}
			mux.ServeHTTP(w, req)
		}),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	return func() error {
		err := server.Close()
		if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
			err = errors.Join(err, ended)
		}
		return err
	}, nil
}

// loopbackOnly refuses an address that others could reach.
func loopbackOnly(flag, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%s %s: only on a loopback address, such as 127.0.0.1:6060", flag, address)
	}
	return nil
}
