package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

type nested struct {
	Inner struct{ Header http.Header }
	Any   any
}

func TestLogRedacts(t *testing.T) {
	const jwt = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLWJ5dGVz"
	secrets := map[string]string{
		jwt:                                 "c2lnbmF0dXJl",
		"pc_0123456789abcdefghijABCDEFGHIJ": "abcdefghij",
		"pcj_abcdefghijklmnopqrstuvwxyz23":  "abcdefghij",
		"pco_abcdefghijklmnopqrstuvwxyz23":  "abcdefghij",
		"Bearer opaque-token-of-someone":    "opaque",
		"Basic YWxpY2U6aHVudGVyMg==":        "YWxpY2U",
		"nats://gateway:hunter2@bus:4222":   "hunter2",
		"/cb?access_token=opaque12345&x=1":  "opaque",
		"-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIhunter2\n-----END EC PRIVATE KEY-----": "hunter2",
	}
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		log, err := NewLogger(LogConfig{Writer: &out, Format: format, Level: slog.LevelDebug})
		if err != nil {
			t.Fatal(err)
		}
		for s, leak := range secrets {
			out.Reset()
			n := nested{Any: []any{s, map[string]string{"x": s}}}
			n.Inner.Header = http.Header{"Authorization": {s}}
			log.Info("got "+s, "plain", s, "error", fmt.Errorf("parse: %w", errors.New(s)), "deep", n, "bytes", json.RawMessage(`"`+strings.ReplaceAll(s, "\n", `\n`)+`"`))
			log.Info("after a line end\n"+s, "tab", "\t"+s, "broken", "\xff"+s)
			log.With("bound", s).WithGroup("g").Debug("x", slog.Group("h", "y", s))
			if strings.Contains(out.String(), leak) {
				t.Errorf("%s: %q leaks %q:\n%s", format, s, leak, out.String())
			}
			if !strings.Contains(out.String(), redacted) {
				t.Errorf("%s: %q is gone without a word", format, s)
			}
			for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
				if format == "json" && !json.Valid([]byte(line)) {
					t.Errorf("no JSON: %s", line)
				}
			}
		}
		out.Reset()
		log.Info("x", "password", "hunter2", "bus_password", 12345, "client-secret", "hunter2", "Authorization", "hunter2",
			"join_token", "hunter2", "set-cookie", []string{"hunter2"}, slog.Group("auth", "apiKey", "hunter2"))
		if s := out.String(); strings.Contains(s, "hunter2") || strings.Contains(s, "12345") {
			t.Errorf("%s: %s", format, s)
		}
		out.Reset()
		log.Info("route changed", "key", "Route shop/orders", "hint", "pc_abcd…", "url", "https://api.example:443/a@b", "issuer", "https://id.example/", "pcs", "pcie_bus", "token_count", 3, "metric", "grpc_server_handled_total_by_code_and_method")
		if strings.Contains(out.String(), redacted) {
			t.Errorf("%s: redacts what is no secret: %s", format, out.String())
		}
	}
	if _, err := NewLogger(LogConfig{Format: "xml"}); err == nil {
		t.Error("format xml accepted")
	}
	var out bytes.Buffer
	log, _ := NewLogger(LogConfig{Writer: &out, Level: slog.LevelWarn})
	log.Info("quiet")
	if out.Len() > 0 {
		t.Error("logs below its level")
	}
}

// Whatever is logged, a JSON log stays JSON.
func TestRedactionKeepsJSON(t *testing.T) {
	var out bytes.Buffer
	log, _ := NewLogger(LogConfig{Writer: &out})
	piece := rapid.SampledFrom([]string{
		"pc_0123456789abcdefghij", "eyJhbGciOiJ9.e30.x", "Bearer a.b", "://u:p@", "-----BEGIN PRIVATE KEY-----", "-----END", `"`, `\`, "\n", "=", "access_token=", "client_secret=", "\x00", "é", "\xff",
	})
	rapid.Check(t, func(rt *rapid.T) {
		out.Reset()
		s := strings.Join(rapid.SliceOf(piece).Draw(rt, "pieces"), "")
		log.Info(s, "value", s, s, s)
		if !json.Valid(bytes.TrimSpace(out.Bytes())) {
			rt.Fatalf("no JSON: %s", out.String())
		}
	})
}
