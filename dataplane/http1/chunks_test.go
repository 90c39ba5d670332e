package http1

import (
	"errors"
	"io"
	"net/http/httputil"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// dechunk feeds the scanner windows of at most size bytes.
func dechunk(s *chunks, text string, size int) (data string, rest int, done bool, err error) {
	b := []byte(text)
	for len(b) > 0 {
		window := b[:min(size, len(b))]
		framing, n, done, err := s.next(window)
		if err != nil {
			return data, 0, false, err
		}
		data += string(window[framing : framing+n])
		b = b[framing+n:]
		if done {
			return data, len(b), true, nil
		}
	}
	return data, 0, false, nil
}

func TestBrokenChunks(t *testing.T) {
	for _, text := range []string{
		"2;x=y\r\nok\r\n0\r\n\r\n", "2 \r\nok\r\n0\r\n\r\n", " 2\r\nok\r\n0\r\n\r\n", "+2\r\nok\r\n0\r\n\r\n", "0x2\r\nok\r\n0\r\n\r\n",
		"-1\r\n\r\n", "g\r\n", "\r\nok\r\n0\r\n\r\n", "2\nok\r\n0\r\n\r\n", "2\r\nok\n0\r\n\r\n", "2\r\nokk\r\n0\r\n\r\n", "2\r\nok0\r\n\r\n",
		"2\rok\r\n0\r\n\r\n", "1000000000000000000002\r\nok", "0\r\nX : y\r\n\r\n", "0\r\nX: y\n\r\n", "0\r\n X: y\r\n\r\n", "0\r\n\n", "0\r\nX: \x00\r\n\r\n",
		"0\r\nX: " + strings.Repeat("y", maxTrailerBytes) + "\r\n\r\n", "0\r\n" + strings.Repeat("X: y\r\n", maxFields+1) + "\r\n", "2\r\nok\r\n0;x\r\n\r\n",
		"0\r\nX: a\rb\r\n\r\n", "2_\r\nok",
	} {
		for _, size := range []int{1, 3, 1 << 20} {
			var s chunks
			if _, _, done, err := dechunk(&s, text, size); !errors.Is(err, exchange.ErrMalformed) {
				t.Errorf("%.40q by %d: done=%t, %v", text, size, done, err)
			}
		}
	}
}

func TestChunksHoweverTheyArrive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOf(rapid.StringN(1, 40, -1)).Draw(t, "parts")
		var text strings.Builder
		w := httputil.NewChunkedWriter(&text)
		for _, part := range parts {
			io.WriteString(w, part)
		}
		w.Close()
		text.WriteString("Grpc-Status: 0\r\nHost: evil\r\nContent-Length: 3\r\nX-Portcullis-Subject: root\r\nx-sum: 1\r\n\r\n")
		var s chunks
		for range 2 {
			data, rest, done, err := dechunk(&s, text.String()+"next", rapid.IntRange(1, 50).Draw(t, "size"))
			if err != nil || !done || rest > 4 || data != strings.Join(parts, "") {
				t.Fatalf("%q %d %t %v", data, rest, done, err)
			}
			trailer := s.header()
			if want := []exchange.Field{{Name: "Grpc-Status", Value: "0"}, {Name: "x-sum", Value: "1"}}; !slices.Equal(trailer.Fields(), want) {
				t.Fatalf("trailer %q", trailer.Fields())
			}
			s.reset()
		}
	})
}
