package main

import (
	"maps"
	"strings"
	"testing"
)

func TestParseListen(t *testing.T) {
	for text, want := range map[string]map[string]string{
		"127.0.0.1:8080":         {"http": "127.0.0.1:8080"},
		":8080 https=:8443":      {"http": ":8080", "https": ":8443"},
		"https=[::1]:8443":       {"https": "[::1]:8443"},
		"http=:1 internal-2=:2":  {"http": ":1", "internal-2": ":2"},
		"":                       nil,
		"8080":                   nil,
		"https=8443":             nil,
		"=:8443":                 nil,
		"HTTPS=:8443":            nil,
		"a.b=:8443":              nil,
		"metrics=:9464":          nil,
		":8080 http=:8081":       nil,
		"https=:8443 https=:444": nil,
	} {
		got, err := parseListen(strings.Fields(text))
		if (err == nil) != (want != nil) || !maps.Equal(got, want) && want != nil {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
}

func TestOpenSocketsAllOrNone(t *testing.T) {
	first, err := openSockets(&passed{}, map[string]string{"http": "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	taken := first["http"].Addr().String()
	if _, err := openSockets(&passed{}, map[string]string{"a": "127.0.0.1:0", "b": taken}); err == nil {
		t.Error("a port that is taken")
	}
	if err := closeSockets(first); err != nil {
		t.Error(err)
	}
}
