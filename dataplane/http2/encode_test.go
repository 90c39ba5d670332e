package http2

import (
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
	"pgregory.net/rapid"
)

// What our encoder writes, the library's decoder reads back equal.
func TestEncoderAgainstDecoder(t *testing.T) {
	names := []string{
		"Accept-Ranges", "Access-Control-Allow-Origin", "Age", "Allow", "Cache-Control", "Content-Disposition", "Content-Encoding",
		"Content-Language", "Content-Location", "Content-Range", "Content-Type", "Date", "ETag", "Expires", "Last-Modified", "Link",
		"Location", "Retry-After", "Server", "Set-Cookie", "Strict-Transport-Security", "Vary", "Via", "WWW-Authenticate", "Content-Length",
		"X-Request-Id", "X-" + strings.Repeat("Long", 60),
	}
	rapid.Check(t, func(t *rapid.T) {
		status := rapid.IntRange(200, 599).Draw(t, "status")
		length := rapid.Int64Range(0, 1<<62).Draw(t, "length")
		block := appendLength(appendStatus(nil, status), length)
		want := []string{":status", itoa(int64(status)), "content-length", itoa(length)}
		for range rapid.IntRange(0, 20).Draw(t, "fields") {
			name := rapid.SampledFrom(names).Draw(t, "name")
			value := rapid.StringMatching(`[!-~]{0,300}`).Draw(t, "value")
			block = appendField(block, name, value)
			want = append(want, strings.ToLower(name), value)
		}
		fields, err := hpack.NewDecoder(0, nil).DecodeFull(block)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range fields {
			got = append(got, f.Name, f.Value)
			if f.Sensitive != (f.Name == "set-cookie") {
				t.Error("sensitive:", f)
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

func itoa(n int64) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}
