package route

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"portcullis.dev/portcullis/pkg/httppath"
)

// Kind says how a pattern's Path is compared. A lower kind wins.
type Kind uint8

const (
	// Exact is the whole path, byte for byte.
	Exact Kind = iota
	// Template has whole segments of the form {name}, each of which captures one
	// non-empty segment.
	Template
	// Prefix matches whole segments: /a matches /a, /a/ and /a/b, not /ab. "/"
	// matches every path, "*" included. A trailing slash means nothing.
	Prefix
)

// MaxParams is how many segments one template may capture.
const MaxParams = httppath.MaxParams

// ErrPattern is wrapped by the error about a pattern that can never match.
var ErrPattern = errors.New("invalid pattern")

// Pattern says which requests an entry is for, and how it ranks among the
// entries that match the same request. The first difference decides:
//
//  1. host: exact, then the longest wildcard, then none;
//  2. path: exact, then template, then the longest prefix; of two templates the
//     one that has a literal segment where the other captures, leftmost first;
//  3. methods: some before none;
//  4. Predicates: more before fewer;
//  5. Priority: higher first;
//  6. Name, then Index: lower first.
//
// (Host, Kind, Path, Name, Index) identifies an entry of a table; the names of a
// template's parameters do not count.
type Pattern struct {
	// Host is lower case: "" for any, "api.example.com", or "*.example.com", which
	// matches one or more labels in the place of the star.
	Host string
	Kind Kind
	// Path is canonical (httppath.CanonicalPath); "" is the Prefix "/".
	Path string
	// Methods are compared byte for byte; none means every method.
	Methods []string
	// Predicates counts what the caller tests besides: headers and query
	// parameters.
	Predicates int
	Priority   int32
	Name       string
	Index      int
}

// entry is a pattern compiled, with its value.
type entry[T any] struct {
	methods    []string
	predicates int
	priority   int32
	name       string
	index      int
	// params names what a template captures, left to right.
	params []string
	value  T
}

func (en *entry[T]) allows(method string) bool {
	return len(en.methods) == 0 || slices.Contains(en.methods, method)
}

// compare orders entries of one leaf, best first. 0 means the same identity and
// rank.
func (en *entry[T]) compare(o *entry[T]) int {
	some := func(m []string) int { return min(len(m), 1) }
	return cmp.Or(
		cmp.Compare(some(o.methods), some(en.methods)),
		cmp.Compare(o.predicates, en.predicates),
		cmp.Compare(o.priority, en.priority),
		strings.Compare(en.name, o.name),
		cmp.Compare(en.index, o.index))
}

// check validates a pattern and returns its path's segments ("" stands for a
// captured one where captured is true) and the names of what it captures.
func (p *Pattern) check() (segments []segment, params []string, err error) {
	host := strings.TrimPrefix(p.Host, "*.")
	if p.Host != "" {
		canonical, port, err := httppath.ParseHost(host)
		if err != nil || port != "" || canonical != host {
			return nil, nil, fmt.Errorf("%w: host %q", ErrPattern, p.Host)
		}
	}
	path := p.Path
	if p.Kind == Prefix {
		path = strings.TrimSuffix(path, "/")
	}
	if path == "" {
		if p.Kind != Prefix {
			return nil, nil, fmt.Errorf("%w: empty path", ErrPattern)
		}
		return nil, nil, nil
	}
	if path[0] != '/' || p.Kind > Prefix || p.Kind == Prefix && strings.HasSuffix(path, "/") {
		return nil, nil, fmt.Errorf("%w: path %q", ErrPattern, p.Path)
	}
	for text := range strings.SplitSeq(path[1:], "/") {
		s := segment{text: text}
		if p.Kind == Template && strings.HasPrefix(text, "{") && strings.HasSuffix(text, "}") && len(text) > 2 {
			params = append(params, text[1:len(text)-1])
			s = segment{captured: true}
		}
		segments = append(segments, s)
	}
	if err := checkSegments(p.Path, segments, params); err != nil {
		return nil, nil, err
	}
	return segments, params, nil
}

type segment struct {
	text     string
	captured bool
}

func checkSegments(path string, segments []segment, params []string) error {
	var literal strings.Builder
	for _, s := range segments {
		literal.WriteByte('/')
		if s.captured {
			literal.WriteByte('x')
		}
		literal.WriteString(s.text)
	}
	canonical, err := httppath.CanonicalPath(literal.String())
	if err != nil {
		return fmt.Errorf("%w: path %q: %w", ErrPattern, path, err)
	}
	if canonical != literal.String() {
		return fmt.Errorf("%w: path %q is not canonical", ErrPattern, path)
	}
	if len(params) > MaxParams {
		return fmt.Errorf("%w: path %q captures more than %d segments", ErrPattern, path, MaxParams)
	}
	for i, name := range params {
		if strings.ContainsAny(name, "{}") || slices.Contains(params[:i], name) {
			return fmt.Errorf("%w: path %q: parameter %q", ErrPattern, path, name)
		}
	}
	return nil
}
