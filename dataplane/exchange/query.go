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

// parameters is a query taken apart.
type parameters struct {
	fields []Field
	raw    string
	most   int // 0: not taken apart yet
	all    bool
}

// Parameters returns the first parameters of the query, most at most, as Query
// yields them, and whether these are all. The query is taken apart once, however
// often it is asked for. They are valid until Reset.
func (e *Exchange) Parameters(most int) (fields []Field, all bool) {
	p := &e.parameters
	if p.most == most && p.raw == e.Request.Query {
		return p.fields, p.all
	}
	*p = parameters{fields: p.fields[:0], raw: e.Request.Query, most: most, all: true}
	for name, value := range Query(p.raw) {
		if len(p.fields) == most {
			p.all = false
			break
		}
		p.fields = append(p.fields, Field{name, value})
	}
	return p.fields, p.all
}
