package grpcweb

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"portcullis.dev/portcullis/dataplane/exchange"
)

func request(contentType, body string) *exchange.Request {
	return &exchange.Request{
		Header: exchange.HeaderOf(exchange.Field{Name: "content-type", Value: contentType}),
		Body:   exchange.Body{Reader: io.NopCloser(strings.NewReader(body)), Length: int64(len(body))},
	}
}

func TestContentTypes(t *testing.T) {
	for sent, c := range map[string]struct{ forwarded, answered string }{
		"application/grpc-web":                      {"application/grpc", "application/grpc-web+proto"},
		"application/grpc-web+proto":                {"application/grpc+proto", "application/grpc-web+proto"},
		"Application/GRPC-Web+json; a=b":            {"application/grpc+json; a=b", "application/grpc-web+proto"},
		"application/grpc-web-text":                 {"application/grpc", "application/grpc-web-text+proto"},
		"application/grpc-web-text+proto;charset=x": {"application/grpc+proto;charset=x", "application/grpc-web-text+proto"},
		"application/grpc":                          {},
		"application/grpc-website":                  {},
		"application/grpc-web-texts":                {},
		"application/json":                          {},
		"":                                          {},
	} {
		r := request(sent, "")
		call, ok := Begin(r)
		if ok != (c.forwarded != "") {
			t.Errorf("%q: taken %v", sent, ok)
			continue
		}
		if !ok {
			if r.Header.Get("Content-Type") != sent {
				t.Errorf("%q became %q", sent, r.Header.Get("Content-Type"))
			}
			continue
		}
		resp := &exchange.Response{Header: exchange.HeaderOf(exchange.Field{Name: "Content-Type", Value: "application/grpc+proto"})}
		call.Answer(resp)
		if got := r.Header.Get("Content-Type"); got != c.forwarded || resp.Header.Get("Content-Type") != c.answered {
			t.Errorf("%q: forwarded as %q, answered as %q", sent, got, resp.Header.Get("Content-Type"))
		}
		if call.Undo(r); r.Header.Get("Content-Type") != sent {
			t.Errorf("%q: not undone", sent)
		}
	}
}

// The body and its trailer arrive whole, however they are cut into reads.
func TestAnswersCarryTheirTrailer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := rapid.SliceOfN(rapid.Byte(), 0, 10_000).Draw(t, "body")
		asText := rapid.Bool().Draw(t, "text")
		cut := rapid.SampledFrom([]func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader, func(r io.Reader) io.Reader { return r }}).Draw(t, "cut")
		contentType := web
		if asText {
			contentType += text
		}
		call, _ := Begin(request(contentType, ""))
		resp := &exchange.Response{
			Header: exchange.HeaderOf(exchange.Field{Name: "Content-Type", Value: grpc}),
			Body: exchange.Body{Reader: io.NopCloser(cut(bytes.NewReader(sent))), Length: int64(len(sent)), Trailer: func() exchange.Header {
				return exchange.HeaderOf(exchange.Field{Name: "Grpc-Status", Value: "5"}, exchange.Field{Name: "grpc-message", Value: "a%20b"})
			}},
		}
		call.Answer(resp)
		got, err := io.ReadAll(resp.Body.Reader)
		if err != nil || resp.Body.Length != -1 || resp.Body.Trailer != nil {
			t.Fatal(err)
		}
		if asText {
			if got, err = io.ReadAll(&decoder{from: io.NopCloser(bytes.NewReader(got))}); err != nil {
				t.Fatal(err)
			}
		}
		tail := "grpc-status: 5\r\ngrpc-message: a%20b\r\n"
		if want := string(sent) + "\x80\x00\x00\x00" + string(rune(len(tail))) + tail; string(got) != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

func TestTextIsDecoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sent []byte
		var encoded strings.Builder
		for range rapid.IntRange(0, 5).Draw(t, "messages") {
			message := rapid.SliceOfN(rapid.Byte(), 0, 5_000).Draw(t, "message")
			sent = append(sent, message...)
			encoded.WriteString(base64.StdEncoding.EncodeToString(message))
		}
		r := request("application/grpc-web-text", encoded.String())
		if rapid.Bool().Draw(t, "slow") {
			r.Body.Reader = io.NopCloser(iotest.OneByteReader(r.Body.Reader))
		}
		Begin(r)
		if got, err := io.ReadAll(r.Body.Reader); err != nil || !bytes.Equal(got, sent) || r.Body.Length != -1 {
			t.Fatalf("got %d bytes of %d, %v", len(got), len(sent), err)
		}
	})
	for _, bad := range []string{"AAA", "A===", "AA=A", "AAAA\r\n", "AA\n==", "$$$$", "AAAB=", "AA==AA"} {
		r := request("application/grpc-web-text", bad)
		Begin(r)
		if got, err := io.ReadAll(r.Body.Reader); !errors.Is(err, exchange.ErrMalformed) {
			t.Errorf("%q: %q, %v", bad, got, err)
		}
	}
}

func TestWhatIsNoGRPCStays(t *testing.T) {
	call, _ := Begin(request(web, ""))
	resp := &exchange.Response{Status: 502, Header: exchange.HeaderOf(exchange.Field{Name: "Content-Type", Value: "text/html"}), Body: exchange.Body{Reader: io.NopCloser(strings.NewReader("x")), Length: 1}}
	call.Answer(resp)
	if b, err := io.ReadAll(resp.Body.Reader); string(b) != "x" || err != nil || resp.Body.Length != 1 || resp.Header.Get("Content-Type") != "text/html" {
		t.Error(resp.Header.Fields(), string(b), err)
	}
}
