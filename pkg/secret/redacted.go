package secret

import (
	"fmt"
	"log/slog"
)

const hidden = "(secret)"

// Redacted is a string that does not print: every verb of fmt, slog and the
// encoders of JSON and text write "(secret)". Reveal gives the value. It is no key
// for a map: encoding/json writes a string key as it is.
type Redacted string

// Reveal returns the value.
func (r Redacted) Reveal() string { return string(r) }

// String hides the value.
func (Redacted) String() string { return hidden }

// GoString hides the value.
func (Redacted) GoString() string { return hidden }

// Format hides the value under every verb, %x and %q included.
func (Redacted) Format(f fmt.State, _ rune) { fmt.Fprint(f, hidden) }

// LogValue hides the value.
func (Redacted) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the value; encoding/json uses it too.
func (Redacted) MarshalText() ([]byte, error) { return []byte(hidden), nil }
