//go:build slow

package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
	"portcullis.dev/portcullis/dataplane/listen"
)

const (
	handOverRequests = 1_000_000
	handOverClients  = 32
	handOvers        = 6
)

// caller sends one request after the other on a connection that it keeps as long
// as it may.
type caller struct {
	address string
	conn    net.Conn
	in      *bufio.Reader
	dials   int
}

func (c *caller) ask() error {
	if c.conn == nil {
		conn, err := net.DialTimeout("tcp", c.address, patience)
		if err != nil {
			return err
		}
		c.conn, c.in = conn, bufio.NewReader(conn)
		c.dials++
	}
	_ = c.conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c.conn, "GET /public HTTP/1.1\r\nHost: api.example\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != 200 || string(body) != "whole":
		return fmt.Errorf("%d %q", resp.StatusCode, body)
	}
	if resp.Close {
		_ = c.conn.Close()
		c.conn = nil
	}
	return nil
}

var pidOf = regexp.MustCompile(`the successor is ready; this process drains" pid=(\d+)`)

// A node is replaced by a successor, again and again, under load: no request fails.
func TestSlowHandOver(t *testing.T) {
	d := deploy(t, 1)
	whole := http1.NewServer(http1.Config{
		Handle: func(*exchange.Exchange) *exchange.Response {
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: &once{text: "whole"}, Length: 5}}
		},
		Refuse: func(*exchange.Exchange, string, int) *exchange.Response { return &exchange.Response{Status: 500} },
	})
	up, err := net.Listen("tcp", "127.0.0.1:0")
	d.must("an upstream", err)
	stopped, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- listen.Run(stopped, up, whole, listen.Config{Drain: time.Second}) }()
	t.Cleanup(func() {
		stop()
		<-served
	})
	d.cli(0, fmt.Sprintf("apiVersion: portcullis.dev/v1\nkind: Upstream\nmetadata: {name: up}\nspec: {endpoints: [{url: \"http://%s\"}]}\n---", up.Addr())+public, "apply", "-f", "-")
	d.expect("/public", "", 200, "")

	var asked atomic.Int64
	failures := make(chan error, 100)
	var calling sync.WaitGroup
	dials := atomic.Int64{}
	for range handOverClients {
		calling.Go(func() {
			c := &caller{address: d.nodes[0]}
			for asked.Add(1) <= handOverRequests {
				if err := c.ask(); err != nil {
					select {
					case failures <- err:
					default:
					}
					if c.conn != nil {
						_ = c.conn.Close()
						c.conn = nil
					}
				}
			}
			dials.Add(int64(c.dials))
			if c.conn != nil {
				_ = c.conn.Close()
			}
		})
	}
	node := d.running["n1"]
	pid := node.cmd.Process.Pid
	pids := []int{pid}
	t.Cleanup(func() {
		for _, pid := range pids[1:] {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	for i := range handOvers {
		d.until(fmt.Sprintf("%d requests", (i+1)*handOverRequests/(handOvers+1)), func() error {
			if asked.Load() < int64((i+1)*handOverRequests/(handOvers+1)) {
				return errors.New("not yet")
			}
			return nil
		})
		d.must("SIGUSR2", syscall.Kill(pid, syscall.SIGUSR2))
		d.until("a successor", func() error {
			found := pidOf.FindAllStringSubmatch(node.said.String(), -1)
			if len(found) != i+1 {
				return errors.New(node.said.String())
			}
			pid, _ = strconv.Atoi(found[i][1])
			return nil
		})
		pids = append(pids, pid)
	}
	calling.Wait()
	close(failures)
	failed := 0
	for err := range failures {
		if failed++; failed <= 5 {
			t.Errorf("a request failed: %v", err)
		}
	}
	t.Logf("%d requests over %d hand-overs on %d connections: %d failed", handOverRequests, handOvers, dials.Load(), failed)
	// The processes before have gone; the node is the same to the cluster.
	for _, old := range pids[1 : len(pids)-1] {
		d.until(fmt.Sprintf("process %d ends", old), func() error {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", old)); err == nil {
				return errors.New("it is there")
			}
			return nil
		})
	}
	d.together(0, "cp1", "cp2")
	if n := len(d.status(0).Nodes); n != 1 {
		t.Errorf("the cluster sees %d nodes", n)
	}
	d.expect("/public", "", 200, "")
}

// once is a body that is read once.
type once struct {
	text string
	done bool
}

func (o *once) Read(p []byte) (int, error) {
	if o.done {
		return 0, io.EOF
	}
	o.done = true
	return copy(p, o.text), io.EOF
}

func (o *once) Close() error { return nil }
