package upstream

import (
	"io"
	"testing"

	"portcullis.dev/portcullis/dataplane/http1"
)

// An upstream may answer before it has the body, whose buffer is another request's
// by then.
func TestHTTP2SendsABodyOfItsOwn(t *testing.T) {
	e := get("/")
	e.Request.Method = "POST"
	body := []byte("mine")
	trip := newTrip(&http1.Call{Context: t.Context(), Request: &e.Request, Body: body, Whole: true}, "http", "a")
	defer trip.done(nil)
	copy(body, "theirs")
	if sent, err := io.ReadAll(trip.body); string(sent) != "mine" || err != nil {
		t.Errorf("%q %v", sent, err)
	}
}
