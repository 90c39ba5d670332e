package upstream

import (
	"fmt"
	"net/http"
	"testing"
	"unsafe"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// The library's encoder remembers the fields that it has sent for as long as the
// connection lasts; the texts of a request lie in memory that the next one is read
// into. Were they handed over as they are, one caller's credential would go out in
// place of another's, or the encoder panic over a table that changes under it.
func TestHTTP2RemembersNothingOfTheFrontEndsMemory(t *testing.T) {
	url, _ := serveHTTP2(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Saw", fmt.Sprintf("%s %s %s", r.RequestURI, r.Host, r.Header.Get("Authorization")))
	})
	b := http2Backend(t, Config{}, url)
	memory := make([]byte, 64)
	text := func(from, n int) string { return unsafe.String(&memory[from], n) }
	e := get("")
	for i := range 2000 {
		user := i * i % 97
		copy(memory, fmt.Sprintf("/path-%03d host-%03d.test authorization user-%03d-secret", user, user, user))
		e.Reset()
		e.Context, e.Request.Method = t.Context(), "GET"
		e.Request.Path, e.Request.Authority = text(0, 9), text(10, 13)
		e.Request.Header = exchange.HeaderOf(exchange.Field{Name: text(24, 13), Value: text(38, 15)})
		want := string(memory[:9]) + " " + string(memory[10:23]) + " " + string(memory[38:53])
		resp, err := b.Do(e, e.Context, soon())
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if saw := resp.Header.Get("X-Saw"); saw != want {
			t.Fatalf("request %d: upstream saw %q, want %q", i, saw, want)
		}
		e.End()
	}
}
