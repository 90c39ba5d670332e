package exchange

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestHeader(t *testing.T) {
	h := HeaderOf(Field{"A", "1"}, Field{"b", "2"}, Field{"a", "3"})
	if h.Get("a") != "1" || h.Count("A") != 2 || h.Get("c") != "" {
		t.Error("lookup", h.Fields())
	}
	if got := slices.Collect(h.Values("A")); !slices.Equal(got, []string{"1", "3"}) {
		t.Error("values", got)
	}
	h.Set("a", "4")
	if got := h.Fields(); !slices.Equal(got, []Field{{"A", "4"}, {"b", "2"}}) {
		t.Error("set", got)
	}
	h.DelFunc(func(f Field) bool { return f.Value == "4" })
	h.Add("C", "5")
	h.Del("B")
	if got := h.Fields(); !slices.Equal(got, []Field{{"C", "5"}}) {
		t.Error("delete", got)
	}
}

func TestEqualFoldIsStringsEqualFoldOnASCII(t *testing.T) {
	ascii := rapid.StringMatching(`[ -~]{0,8}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := ascii.Draw(t, "a"), ascii.Draw(t, "b")
		if rapid.Bool().Draw(t, "same") {
			b = strings.ToUpper(a)
		}
		if EqualFold(a, b) != strings.EqualFold(a, b) {
			t.Fatalf("%q %q", a, b)
		}
	})
	if EqualFold("k", "\u212a") || EqualFold("s", "\u017f") || EqualFold("@", "`") {
		t.Error("folds beyond ASCII letters")
	}
}

func TestQuery(t *testing.T) {
	var got []string
	for n, v := range Query("a=1&&b=x+y&a=%32&c&=d&e=f=g;h") {
		got = append(got, n+":"+v)
	}
	if want := []string{"a:1", "b:x y", "a:2", "c:", ":d", "e:f=g;h"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAnswerRunsLastFirstAndItsFieldsWin(t *testing.T) {
	e := &Exchange{}
	var order []string
	for _, s := range []string{"1", "2"} {
		e.After = append(e.After, func(e *Exchange, r *Response) {
			order = append(order, s)
			e.ResponseHeader.Add("RateLimit", s)
		})
		e.Done = append(e.Done, func(*Exchange) { order = append(order, "done "+s) })
	}
	r := &Response{Header: HeaderOf(Field{"ratelimit", "from upstream"})}
	e.Answer(r)
	e.Answer(r)
	e.End()
	e.End()
	if want := []string{"2", "1", "done 2", "done 1"}; !slices.Equal(order, want) {
		t.Errorf("order %q, want %q", order, want)
	}
	if got := slices.Collect(r.Header.Values("RateLimit")); !slices.Equal(got, []string{"2", "1"}) {
		t.Errorf("header %q", got)
	}
}

func TestResetForgetsEverything(t *testing.T) {
	e := &Exchange{ID: "x", Params: []Param{{"a", "b"}}}
	e.Request.Header.Add("Authorization", "secret")
	e.ResponseHeader.Add("A", "b")
	e.Identity.Subject = "s"
	e.Reset()
	if e.ID != "" || len(e.Params) != 0 || e.Request.Header.Len() != 0 || e.ResponseHeader.Len() != 0 || e.Identity.Subject != "" {
		t.Errorf("left over: %+v", e)
	}
	if f := e.Request.Header.Fields()[:1]; f[0].Value != "" {
		t.Error("a field's memory survives")
	}
}

func TestIDs(t *testing.T) {
	if a, b := NewID(), NewID(); a == b || !ValidID(a) || len(a) != 32 {
		t.Error(a, b)
	}
	e := &Exchange{}
	e.Name()
	if !ValidID(e.ID) || len(e.ID) != 32 {
		t.Error(e.ID)
	}
	for _, id := range []string{"", "short", "has space!", "a\r\nb: cdef", strings.Repeat("a", 129), "tilde~tilde"} {
		if ValidID(id) {
			t.Errorf("%q is valid", id)
		}
	}
}
