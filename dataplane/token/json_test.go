package token

import (
	"bytes"
	"encoding/json"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseObjectRefuses(t *testing.T) {
	for _, text := range []string{
		``, ` `, `null`, `[]`, `"x"`, `1`, `{`, `}`, `{}}`, `{} {}`, `{},`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `{a:1}`, `{'a':1}`,
		`{"a":1 "b":2}`, `{"a":[1,]}`, `{"a":[,]}`, `{"a":[1}`, `{"a":[1 2]}`,
		`{"a":01}`, `{"a":-}`, `{"a":-01}`, `{"a":1.}`, `{"a":.5}`, `{"a":1e}`, `{"a":1e+}`, `{"a":+1}`, `{"a":0x1}`, `{"a":NaN}`, `{"a":Infinity}`, `{"a":1_0}`,
		`{"a":tru}`, `{"a":True}`, `{"a":nul}`, `{"a":truee}`,
		`{"a":"`, `{"a":"\"}`, `{"a":"\x"}`, `{"a":"\u12"}`, `{"a":"\u12g4"}`, "{\"a\":\"\n\"}", "{\"a\":\"\x00\"}", "{\"a\":\"\t\"}",
		`{"a":"\ud800"}`, `{"a":"\udc00"}`, `{"a":"\ud800\u0041"}`, `{"a":"\ud800x"}`, `{"a":"\ud800\ud800"}`,
		"{\"a\":\"\xff\"}", "{\"a\":\"\\n\xff\"}", "{\"\xc0\xaf\":1}", "{\"a\":\"\xed\xa0\x80\"}",
		"\ufeff{}", "{}\x00", "{/**/}", `{"a":1}//`,
	} {
		if v, refusal := parseObject(text, ErrClaims); refusal != ErrClaims {
			t.Errorf("%q: %v %v", text, v, refusal)
		}
	}
}

func TestParseObjectDepth(t *testing.T) {
	nest := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	if _, refusal := parseObject(nest(maxDepth-1), ErrClaims); refusal != nil {
		t.Error(refusal)
	}
	for _, text := range []string{nest(maxDepth), `{"a":` + strings.Repeat("[", 100_000)} {
		if _, refusal := parseObject(text, ErrClaims); refusal != ErrDepth {
			t.Error(refusal)
		}
	}
}

func TestParseObjectNumbers(t *testing.T) {
	for literal, want := range map[string]any{
		"0": 0.0, "-1": -1.0, "1.5": 1.5, "1e2": 100.0, "9007199254740991": 9007199254740991.0,
		"9007199254740993": json.Number("9007199254740993"), "-9007199254740993": json.Number("-9007199254740993"),
		"18446744073709551616": json.Number("18446744073709551616"), "0.1": 0.1,
		"0.12345678901234567890": json.Number("0.12345678901234567890"), "1e999": json.Number("1e999"),
		"1e-999": json.Number("1e-999"), "5e-324": json.Number("5e-324"), "0.0": 0.0, "0e5": 0.0,
	} {
		got, refusal := parseObject(`{"n":`+literal+`}`, ErrClaims)
		if refusal != nil || got["n"] != want {
			t.Errorf("%s: got %v (%T), want %v", literal, got["n"], got["n"], want)
		}
	}
}

// FuzzParseObject compares with encoding/json, which accepts more: what is
// accepted here, it reads as the same value.
func FuzzParseObject(f *testing.F) {
	for _, text := range []string{
		`{"a":1,"b":[true,false,null,"x"],"c":{"d":-1.5e3}}`, `{"a":"\u00e9\ud83d\ude00\n\/"}`, `{"a":1,"\u0061":2}`,
		`{"n":9007199254740993,"m":0.1e-7}`, "{\"é\":\"\u2028\"}", `{"a":[[[[[]]]]]}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, refusal := parseObject(text, ErrClaims)
		if refusal != nil {
			return
		}
		if !utf8.ValidString(text) {
			t.Fatal("accepted invalid UTF-8")
		}
		d := json.NewDecoder(bytes.NewReader([]byte(text)))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if !same(got, want) {
			t.Fatalf("%q: got %v, want %v", text, got, want)
		}
	})
}

// same compares what was read with what encoding/json read with UseNumber. A
// float64 has to give the literal back: exactly, or in its first 15 digits.
func same(got, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		got, ok := got.(map[string]any)
		if !ok || len(got) != len(want) {
			return false
		}
		for name, v := range want {
			if g, present := got[name]; !present || !same(g, v) {
				return false
			}
		}
		return true
	case []any:
		got, ok := got.([]any)
		return ok && slices.EqualFunc(got, want, same)
	case json.Number:
		f, ok := got.(float64)
		if !ok {
			return got == want
		}
		literal, ok := new(big.Rat).SetString(want.String())
		digits, _ := new(big.Rat).SetString(strconv.FormatFloat(f, 'g', 15, 64))
		return ok && (literal.Cmp(digits) == 0 || literal.Cmp(new(big.Rat).SetFloat64(f)) == 0)
	}
	return got == want
}
