package token

import (
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds how deep objects and arrays of a token nest.
const maxDepth = 16

// parseObject reads one JSON object (RFC 8259) and nothing after it. It is
// stricter than encoding/json: a member that comes twice at any depth is an
// error, after its escapes are resolved, since two readers may believe different
// ones; so are invalid UTF-8 and lone surrogates, which readers replace
// differently. Numbers are float64, or json.Number where a float64 would lose
// digits. bad is returned for what is not an object at all.
func parseObject(text string, bad *Refusal) (map[string]any, *Refusal) {
	s := scanner{text: text, bad: bad}
	s.space()
	if s.peek() != '{' {
		return nil, bad
	}
	v, refusal := s.value(1)
	if refusal != nil {
		return nil, refusal
	}
	s.space()
	if s.pos != len(s.text) {
		return nil, bad
	}
	return v.(map[string]any), nil
}

type scanner struct {
	text string
	pos  int
	bad  *Refusal
}

// peek returns the next byte, or 0 at the end; a NUL is not valid outside of
// strings, so the two need not be told apart.
func (s *scanner) peek() byte {
	if s.pos < len(s.text) {
		return s.text[s.pos]
	}
	return 0
}

func (s *scanner) space() {
	for s.pos < len(s.text) {
		switch s.text[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

func (s *scanner) literal(word string, v any) (any, *Refusal) {
	if len(s.text)-s.pos < len(word) || s.text[s.pos:s.pos+len(word)] != word {
		return nil, s.bad
	}
	s.pos += len(word)
	return v, nil
}

func (s *scanner) value(depth int) (any, *Refusal) {
	if depth > maxDepth {
		return nil, ErrDepth
	}
	switch c := s.peek(); {
	case c == '{':
		return s.object(depth)
	case c == '[':
		return s.array(depth)
	case c == '"':
		v, refusal := s.str()
		if refusal != nil {
			return nil, refusal
		}
		return v, nil
	case c == 't':
		return s.literal("true", true)
	case c == 'f':
		return s.literal("false", false)
	case c == 'n':
		return s.literal("null", nil)
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	}
	return nil, s.bad
}

func (s *scanner) object(depth int) (any, *Refusal) {
	members := map[string]any{}
	s.pos++
	s.space()
	if s.peek() == '}' {
		s.pos++
		return members, nil
	}
	for {
		s.space()
		if s.peek() != '"' {
			return nil, s.bad
		}
		name, refusal := s.str()
		if refusal != nil {
			return nil, refusal
		}
		s.space()
		if s.peek() != ':' {
			return nil, s.bad
		}
		s.pos++
		s.space()
		v, refusal := s.value(depth + 1)
		if refusal != nil {
			return nil, refusal
		}
		if _, twice := members[name]; twice {
			return nil, ErrDuplicate
		}
		members[name] = v
		s.space()
		switch s.peek() {
		case ',':
			s.pos++
		case '}':
			s.pos++
			return members, nil
		default:
			return nil, s.bad
		}
	}
}

func (s *scanner) array(depth int) (any, *Refusal) {
	elements := []any{}
	s.pos++
	s.space()
	if s.peek() == ']' {
		s.pos++
		return elements, nil
	}
	for {
		s.space()
		v, refusal := s.value(depth + 1)
		if refusal != nil {
			return nil, refusal
		}
		elements = append(elements, v)
		s.space()
		switch s.peek() {
		case ',':
			s.pos++
		case ']':
			s.pos++
			return elements, nil
		default:
			return nil, s.bad
		}
	}
}

// str reads a string. One without escapes shares memory with the text.
func (s *scanner) str() (string, *Refusal) {
	s.pos++
	start := s.pos
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == '"':
			v := s.text[start:s.pos]
			s.pos++
			return v, nil
		case c == '\\':
			return s.escaped(start)
		case c < 0x20:
			return "", s.bad
		case c < utf8.RuneSelf:
			s.pos++
		default:
			r, size := utf8.DecodeRuneInString(s.text[s.pos:])
			if r == utf8.RuneError && size == 1 {
				return "", s.bad
			}
			s.pos += size
		}
	}
	return "", s.bad
}

// escaped goes on with a string at its first escape.
func (s *scanner) escaped(start int) (string, *Refusal) {
	out := append(make([]byte, 0, 2*(s.pos-start)+16), s.text[start:s.pos]...)
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == '"':
			s.pos++
			return string(out), nil
		case c == '\\':
			r, ok := s.escape()
			if !ok {
				return "", s.bad
			}
			out = utf8.AppendRune(out, r)
		case c < 0x20:
			return "", s.bad
		default:
			r, size := utf8.DecodeRuneInString(s.text[s.pos:])
			if r == utf8.RuneError && size == 1 {
				return "", s.bad
			}
			out = append(out, s.text[s.pos:s.pos+size]...)
			s.pos += size
		}
	}
	return "", s.bad
}

func (s *scanner) escape() (rune, bool) {
	if len(s.text)-s.pos < 2 {
		return 0, false
	}
	c := s.text[s.pos+1]
	s.pos += 2
	switch c {
	case '"', '\\', '/':
		return rune(c), true
	case 'b':
		return '\b', true
	case 'f':
		return '\f', true
	case 'n':
		return '\n', true
	case 'r':
		return '\r', true
	case 't':
		return '\t', true
	case 'u':
		return s.codePoint()
	}
	return 0, false
}

// codePoint reads the digits of \uXXXX, and the second half of a surrogate pair.
func (s *scanner) codePoint() (rune, bool) {
	high, ok := s.hex4()
	if !ok || !utf16.IsSurrogate(high) {
		return high, ok
	}
	if len(s.text)-s.pos < 2 || s.text[s.pos] != '\\' || s.text[s.pos+1] != 'u' {
		return 0, false
	}
	s.pos += 2
	low, ok := s.hex4()
	r := utf16.DecodeRune(high, low)
	return r, ok && r != utf8.RuneError
}

func (s *scanner) hex4() (rune, bool) {
	if len(s.text)-s.pos < 4 {
		return 0, false
	}
	var r rune
	for _, c := range []byte(s.text[s.pos : s.pos+4]) {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	s.pos += 4
	return r, true
}
