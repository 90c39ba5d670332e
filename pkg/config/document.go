package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Bounds on what Decode reads.
const (
	// MaxDocument is the size of one document in bytes.
	MaxDocument = 1 << 20
	// MaxStream is the size of all documents of one file in bytes.
	MaxStream = 64 << 20
	// maxProblems ends the reading of a file that has nothing right in it.
	maxProblems = 100
)

// Document is a resource and the text that it was read from.
type Document struct {
	Resource *configv1.Resource

	file string
	line int // lines before src in the file
	src  []byte
}

// File returns the name given to Decode.
func (d Document) File() string { return d.file }

// Locate sets the problem's File, Line and Column to where its Path stands in the
// document, or to the nearest enclosing field when the Path itself is not
// written.
func (d Document) Locate(p *Problem) {
	p.File = d.file
	root, err := parse(d.src)
	if err != nil || root == nil {
		return
	}
	at := root
	for _, step := range splitPath(p.Path) {
		next := child(at, step)
		if next == nil {
			break
		}
		at = next
	}
	p.Line, p.Column = at.Line+d.line, at.Column
}

// Locate sets the place of every Problem in err that is about one of the
// documents, and returns them sorted by place. An err that is no Problems is
// returned as it is.
func Locate(documents []Document, err error) error {
	var problems Problems
	if !errors.As(err, &problems) {
		return err
	}
	// A resource that is declared twice is a mistake of its last document.
	at := make(map[Key]Document, len(documents))
	for _, d := range documents {
		at[KeyOf(d.Resource)] = d
	}
	located := make(Problems, len(problems))
	for i, p := range problems {
		c := *p
		if d, ok := at[c.Key]; ok {
			d.Locate(&c)
		}
		located[i] = &c
	}
	return located.sorted()
}

// splitPath splits spec.policies[1].set[X-Y] into spec, policies, 1, set, X-Y.
func splitPath(path string) []string {
	var steps []string
	for path != "" {
		switch path[0] {
		case '.':
			path = path[1:]
		case '[':
			step, rest, _ := strings.Cut(path[1:], "]")
			steps, path = append(steps, step), rest
		default:
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			steps, path = append(steps, path[:end]), path[end:]
		}
	}
	return steps
}

func child(n *yaml.Node, step string) *yaml.Node {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		var i int
		if _, err := fmt.Sscanf(step, "%d", &i); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i]
		}
	}
	return nil
}

// Decode reads a stream of YAML documents; JSON is YAML. It is strict: a field
// that does not exist, a value of the wrong type, a key given twice, an alias or
// a tag is an error. The error is Problems, each with file, line and column and
// what was expected; file is only a name. Documents without content are left
// out. Decode does not Check.
func Decode(file string, data []byte) ([]Document, error) {
	var problems Problems
	if len(data) > MaxStream {
		return nil, Problems{{File: file, Line: 1, Column: 1,
			Reason: fmt.Sprintf("is %d bytes long: expected at most %d in one file", len(data), MaxStream)}}
	}
	if at, why := badCharacter(data); why != "" {
		line := bytes.Count(data[:at], []byte("\n"))
		column := at - bytes.LastIndexByte(data[:at], '\n')
		return nil, Problems{{File: file, Line: line + 1, Column: column, Reason: why}}
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	var documents []Document
	for line := 0; len(data) > 0 && len(problems) < maxProblems; {
		src, rest := cutDocument(data)
		doc := Document{file: file, line: line, src: src}
		problems = append(problems, doc.decode()...)
		if doc.Resource != nil {
			documents = append(documents, doc)
		}
		line += bytes.Count(src, []byte("\n"))
		data = rest
	}
	if err := problems.sorted(); err != nil {
		return nil, err
	}
	return documents, nil
}

// badCharacter finds what makes a text mean something else than people see: what
// only YAML takes for the end of a line, so that a comment could hold a field,
// and what turns the direction of writing.
func badCharacter(data []byte) (at int, why string) {
	for i := 0; i < len(data); {
		if c := data[i]; c < utf8.RuneSelf && c != '\r' {
			i++
			continue
		}
		r, n := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			return i, "is not UTF-8"
		case r == '\r' && (i+1 == len(data) || data[i+1] != '\n'), r == 0x85, r == 0x2028, r == 0x2029:
			return i, fmt.Sprintf("has U+%04X as the end of a line: expected \\n or \\r\\n", r)
		case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			return i, fmt.Sprintf("has U+%04X, which hides what the text says: expected it escaped", r)
		}
		i += n
	}
	return 0, ""
}

// cutDocument cuts before the next line that starts with the marker "---", which
// YAML forbids anywhere else at the start of a line (YAML 1.2.2, 9.1.2). Each
// document is then bounded, parsed and positioned by itself.
func cutDocument(data []byte) (document, rest []byte) {
	for at := 0; ; {
		next := bytes.IndexByte(data[at:], '\n')
		if next < 0 {
			return data, nil
		}
		at += next + 1
		if isMarker(data[at:]) {
			return data[:at], data[at:]
		}
	}
}

func isMarker(line []byte) bool {
	after, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(after) == 0 || strings.IndexByte(" \t\r\n", after[0]) >= 0)
}

// parse returns the document's content, or nil when there is none.
func parse(src []byte) (*yaml.Node, error) {
	var root yaml.Node
	loader, err := yaml.NewLoader(bytes.NewReader(src))
	if err != nil {
		return nil, err
	}
	if err := loader.Load(&root); err != nil {
		if len(bytes.TrimSpace(src)) == 0 || isEOF(err) {
			return nil, nil
		}
		return nil, err
	}
	var more yaml.Node
	if err := loader.Load(&more); err == nil {
		return nil, &yaml.LoadError{Message: "expected \"---\" between documents", Mark: yaml.Mark{Line: more.Line, Column: more.Column}}
	} else if !isEOF(err) {
		return nil, err
	}
	n := &root
	if n.Kind == yaml.DocumentNode {
		if len(n.Content) == 0 {
			return nil, nil
		}
		n = n.Content[0]
	}
	if n.Kind == 0 || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" && n.Value == "" && n.Anchor == "" {
		return nil, nil
	}
	return n, nil
}

func (d *Document) decode() Problems {
	at := func(line, column int, reason string) Problems {
		return Problems{{File: d.file, Line: d.line + max(line, 1), Column: max(column, 1), Reason: reason}}
	}
	if len(d.src) > MaxDocument {
		return at(1, 1, fmt.Sprintf("document is %d bytes long: expected at most %d", len(d.src), MaxDocument))
	}
	root, err := parse(d.src)
	if err != nil {
		var le *yaml.LoadError
		if errors.As(err, &le) {
			return at(le.Mark.Line, le.Mark.Column, strings.TrimSpace("not YAML: "+le.Message+" "+le.ContextMsg))
		}
		return at(1, 1, "not YAML: "+err.Error())
	}
	if root == nil {
		return nil
	}
	dec := decoder{doc: d}
	r := dec.resource(root)
	if len(dec.problems) == 0 {
		d.Resource = r
	}
	return dec.problems
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
