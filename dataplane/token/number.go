package token

import (
	"encoding/json"
	"math"
	"strconv"
)

func (s *scanner) number() (any, *Refusal) {
	start := s.pos
	if s.peek() == '-' {
		s.pos++
	}
	whole := s.pos
	if !s.digits() || s.text[whole] == '0' && s.pos > whole+1 {
		return nil, s.bad // none, or a leading zero
	}
	if s.peek() == '.' {
		s.pos++
		if !s.digits() {
			return nil, s.bad
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		if !s.digits() {
			return nil, s.bad
		}
	}
	return numberOf(s.text[start:s.pos]), nil
}

func (s *scanner) digits() bool {
	start := s.pos
	for s.pos < len(s.text) && s.text[s.pos] >= '0' && s.text[s.pos] <= '9' {
		s.pos++
	}
	return s.pos > start
}

// numberOf returns a float64 when it holds the literal without loss: an integer
// up to 2^53, or up to 15 significant digits inside the normal range (IEEE 754
// binary64 keeps every decimal of 15 digits).
func numberOf(literal string) any {
	f, err := strconv.ParseFloat(literal, 64)
	if err != nil {
		return json.Number(literal)
	}
	if n, err := strconv.ParseInt(literal, 10, 64); err == nil {
		if n > -1<<53 && n < 1<<53 {
			return f
		}
		return json.Number(literal)
	}
	significant, zero := 0, true
	for _, c := range []byte(literal) {
		if c == 'e' || c == 'E' {
			break
		}
		if c < '0' || c > '9' {
			continue
		}
		zero = zero && c == '0'
		if !zero {
			significant++
		}
	}
	if significant > 15 || !zero && math.Abs(f) < 0x1p-1022 {
		return json.Number(literal)
	}
	return f
}
