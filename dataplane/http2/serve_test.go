package http2

import (
	"io"
	"net/http"
	"strings"
	"testing"

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
