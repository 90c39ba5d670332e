package telemetry

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
)

// LogConfig says how to log.
type LogConfig struct {
	// Writer gets one Write per record. Required.
	Writer io.Writer
	// Format is "json" (default) or "text".
	Format string
	// Level is the least that is logged; nil: info.
	Level slog.Leveler
}

// NewLogger returns a logger that lets no secret through: the values of attributes
// with telling names, and whatever looks like a credential anywhere in a record,
// become "(redacted)".
func NewLogger(c LogConfig) (*slog.Logger, error) {
	opts := &slog.HandlerOptions{Level: c.Level, ReplaceAttr: redactAttr}
	w := newRedactor(c.Writer)
	switch c.Format {
	case "", "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("log format %q is neither json nor text", c.Format)
}

const redacted = "(redacted)"

func redactAttr(_ []string, a slog.Attr) slog.Attr {
	if secretName(a.Key) && a.Value.Kind() != slog.KindGroup {
		return slog.String(a.Key, redacted)
	}
	return a
}

// secretName tells by its last word whether an attribute holds a secret. "key"
// alone is a resource's name here.
func secretName(key string) bool {
	k := strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r == '.' {
			return -1
		}
		return r
	}, strings.ToLower(key))
	for _, s := range [...]string{
		"authorization", "cookie", "password", "passphrase", "passwd", "secret", "token", "credential",
		"apikey", "privatekey", "sealingkey", "signingkey", "xapikey", "assertion",
	} {
		if strings.HasSuffix(k, s) {
			return true
		}
	}
	return false
}

// redactor rewrites whole records on their way out: no way of nesting a secret in
// a value gets round it. Every pattern keeps its groups. None asks for a word's
// beginning: in JSON a line end before a secret is \n, which ends in a letter.
type redactor struct {
	to       io.Writer
	patterns []pattern
}

type pattern struct {
	// hint is a literal that every match contains; looking for it is cheap.
	hint []byte
	re   *regexp.Regexp
}

func newRedactor(to io.Writer) *redactor {
	r := &redactor{to: to}
	for _, p := range [...][2]string{
		{"pc", `()pc[a-z]?_[A-Za-z0-9]{16,}`},                                                      // our keys, tokens and credentials
		{"pcr_", `()pcr_[A-Za-z0-9_-]{16,}`},                                                       // our rejoin proofs
		{"eyJ", `()eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_.-]*`},                         // JWS and JWE
		{"earer ", `([Bb]earer )[A-Za-z0-9._~+/=-]+`},                                              // RFC 6750
		{"asic ", `([Bb]asic )[A-Za-z0-9._~+/=-]{4,}`},                                             // RFC 7617
		{"PRIVATE KEY-----", `(-----BEGIN [A-Z ]*PRIVATE KEY-----)(?:[^-"\\]|\\+[nrt]|-[^-"\\])*`}, // RFC 7468
		{"://", `(://[^\s/:@"\\]*:)[^\s/@"\\]+(@)`},                                                // a password in a URL
		{"_token=", `((?:access|refresh|id)_token=)[^\s&"\\]+`},                                    // RFC 6750, 2.3
		{"secret=", `(client_secret=)[^\s&"\\]+`},                                                  // RFC 6749, 2.3.1
	} {
		r.patterns = append(r.patterns, pattern{[]byte(p[0]), regexp.MustCompile(p[1])})
	}
	return r
}

// Write implements io.Writer. It reports the length it was given, whatever it
// wrote.
func (r *redactor) Write(record []byte) (int, error) {
	out := record
	for _, p := range r.patterns {
		if bytes.Contains(out, p.hint) {
			out = p.re.ReplaceAll(out, []byte("${1}"+redacted+"${2}"))
		}
	}
	if _, err := r.to.Write(out); err != nil {
		return 0, err
	}
	return len(record), nil
}
