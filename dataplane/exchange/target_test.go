package exchange

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	for _, c := range []struct{ method, target, host, path, query string }{
		{"GET", "/a?b=c", "h", "/a", "b=c"},
		{"GET", "/a?", "h", "/a", ""},
		{"GET", "/a?b=/../c?d", "h", "/a", "b=/../c?d"},
		{"OPTIONS", "*", "h", "*", ""},
		{"GET", "http://h/a", "h", "/a", ""},
		{"GET", "http://h", "h", "/", ""},
		{"GET", "http://h?x=1", "h", "/", "x=1"},
		{"GET", "HTTP://H:80/a", "h", "/a", ""},
		{"GET", "https://h./a", "H:443", "/a", ""},
		{"GET", "http://[::1]:8080/a", "[0:0::1]:8080", "/a", ""},
		{"GET", "*", "h", "", ""},
		{"GET", "", "h", "", ""},
		{"GET", "svc/Method", "h", "", ""},
		{"CONNECT", "h:443", "h", "", ""},
		{"GET", "h:443", "h", "", ""},
		{"GET", "http://other/a", "h", "", ""},
		{"GET", "http://h:81/a", "h", "", ""},
		{"GET", "http://h:443/a", "h", "", ""},
		{"GET", "http://u@h/a", "h", "", ""},
		{"GET", "http:///a", "h", "", ""},
		{"GET", "ftp://h/a", "h", "", ""},
		{"GET", "http://h#/a", "h", "", ""},
		{"GET", "http:/a", "h", "", ""},
		{"GET", "/a#b", "h", "", ""},
		{"GET", "/a?b#c", "h", "", ""},
		{"GET", "/a?b%", "h", "", ""},
		{"GET", "/a?b%2", "h", "", ""},
		{"GET", "/a?b\x80", "h", "", ""},
		{"GET", "/a?b c", "h", "", ""},
		{"GET", "/a?" + strings.Repeat("&", MaxQueryParameters), "h", "", ""},
		{"GET", "?a", "h", "", ""},
	} {
		path, query, err := ParseTarget(c.method, c.target, c.host)
		if c.path == "" {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%s %q: got %q, %v; want a malformed request", c.method, c.target, path, err)
			}
			continue
		}
		if err != nil || path != c.path || query != c.query {
			t.Errorf("%s %q: got %q %q, %v; want %q %q", c.method, c.target, path, query, err, c.path, c.query)
		}
	}
}

func TestOrdinaryRequestsCostNoAllocation(t *testing.T) {
	var e Exchange
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := ParseTarget("GET", "/users/42/orders?page=2&sort=asc", "api.example.com"); err != nil {
			t.Error(err)
		}
		if _, _, err := ParseHost("api.example.com:8080"); err != nil {
			t.Error(err)
		}
		e.Reset()
		e.Request.Query = "page=2&sort=asc"
		if fields, all := e.Parameters(2); !all || len(fields) != 2 || fields[1].Value != "asc" {
			t.Error(fields)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestParameters(t *testing.T) {
	var e Exchange
	for _, c := range []struct {
		query string
		most  int
		want  []Field
		all   bool
	}{
		{"", 2, nil, true},
		{"a=1&&b=%41+&a", 3, []Field{{"a", "1"}, {"b", "A "}, {"a", ""}}, true},
		{"a=1&&b=%41+&a", 2, []Field{{"a", "1"}, {"b", "A "}}, false},
		{"c", 2, []Field{{"c", ""}}, true},
	} {
		e.Request.Query = c.query
		for range 2 {
			if got, all := e.Parameters(c.most); !slices.Equal(got, c.want) || all != c.all {
				t.Errorf("%q: %v, %v", c.query, got, all)
			}
		}
	}
	e.Reset()
	if got, all := e.Parameters(2); len(got) > 0 || !all {
		t.Errorf("after Reset: %v", got)
	}
}
