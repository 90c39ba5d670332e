package exchange

import (
	"iter"
	"strings"

	"portcullis.dev/portcullis/pkg/httppath"
)

// Query yields the parameters of a raw query in order, names and values decoded
// as in application/x-www-form-urlencoded: '+' is a space. Parameters are
// separated by '&' only. A parameter without '=' has an empty value. It
// allocates only for what needs decoding.
func Query(raw string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for raw != "" {
			var parameter string
			parameter, raw, _ = strings.Cut(raw, "&")
			if parameter == "" {
				continue
			}
			name, value, _ := strings.Cut(parameter, "=")
			if !yield(httppath.UnescapeForm(name), httppath.UnescapeForm(value)) {
				return
			}
		}
	}
}

// QueryValue returns the first value of a parameter and how often the parameter
// occurs. Servers differ in whether the first or the last of several counts, so
// who decides by it looks at the count.
func QueryValue(raw, name string) (value string, count int) {
	for n, v := range Query(raw) {
		if n == name {
			if count == 0 {
				value = v
			}
			count++
		}
	}
	return value, count
}
