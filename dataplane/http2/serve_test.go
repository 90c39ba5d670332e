package http2

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

func TestRequestsReachTheHandlerAsTheyWereSent(t *testing.T) {
	f := start(t, Config{})
	client := f.client()
	for range 3 {
		req, err := http.NewRequest("POST", "http://"+f.addr+"/a/b?c=d", io.MultiReader(strings.NewReader("hel"), strings.NewReader("lo")))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-A", "1")
		req.Header.Add("Cookie", "a=b; c=d")
		req.Trailer = http.Header{"X-Sum": {"5"}}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Fatal(resp.Status, resp.Proto, err)
		}
		for _, want := range []string{"POST /a/b?c=d host=127.0.0.1 ", "x-a: 1\n", "cookie: a=b; c=d\n", "body=hello\ntrailer x-sum: 5"} {
			if !strings.Contains(string(body), want) {
				t.Errorf("got %s\nwant %q in it", body, want)
			}
		}
		if resp.Header.Get("X-Request-Id") == "" || resp.Header.Get("Content-Type") != "text/plain" {
			t.Error(resp.Header)
		}
	}
}

func TestLargeBodiesBothWays(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: e.Request.Body.Reader, Length: e.Request.Body.Length}}
	}})
	client := f.client()
	sent := strings.Repeat("0123456789abcdef", 5<<20/16)
	for _, known := range []bool{true, false} {
		var body io.Reader = strings.NewReader(sent)
		if !known {
			body = io.MultiReader(body)
		}
		resp, err := client.Post("http://"+f.addr+"/", "text/plain", body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(got) != sent {
			t.Errorf("known length %v: %d bytes came back, %v", known, len(got), err)
		}
	}
}

// Streams that are used again, some given up at any moment, never mix up whose
// bytes are whose.
func TestManyAtOnce(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: e.Request.Body.Reader, Length: -1},
			Header: exchange.HeaderOf(exchange.Field{Name: "X-Name", Value: e.Request.Header.Get("x-name")})}
	}})
	client := f.client()
	var all sync.WaitGroup
	for worker := range 16 {
		all.Go(func() {
			for i := range 60 {
				name := fmt.Sprint(worker, "-", i, "-")
				ctx, cancel := context.WithCancel(t.Context())
				if i%4 == 3 {
					time.AfterFunc(time.Duration(i)*50*time.Microsecond, cancel)
				}
				sent := strings.Repeat(name, 1+i*i*i/20)
				req, err := http.NewRequestWithContext(ctx, "POST", "http://"+f.addr+"/", strings.NewReader(sent))
				if err != nil {
					t.Error(err)
				}
				req.Header.Set("X-Name", name)
				resp, err := client.Do(req)
				if err == nil {
					var got []byte
					got, err = io.ReadAll(resp.Body)
					resp.Body.Close()
					if resp.Header.Get("X-Name") != name || !strings.HasPrefix(sent, string(got)) || err == nil && len(got) != len(sent) {
						t.Errorf("%s: %d bytes of %d of %s", name, len(got), len(sent), resp.Header.Get("X-Name"))
					}
				}
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	all.Wait()
}
