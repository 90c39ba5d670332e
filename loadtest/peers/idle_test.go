package main

import (
	"strings"
	"testing"
)

func TestParseHeld(t *testing.T) {
	const text = `heap profile: 6: 51648 [7: 54336] @ heap/1048576

# runtime.MemStats
# HeapAlloc = 11
# HeapInuse = 40960000
# HeapReleased = 12
# Stack = 20480000 / 20500000
# NumGC = 7
# NumForcedGC = 0
`
	got, err := parseHeld(text)
	if want := (held{heap: 40_960_000, stacks: 20_480_000, collections: 7, known: true}); err != nil || got != want {
		t.Errorf("%+v %v, want %+v", got, err, want)
	}
	if _, err := parseHeld("heap profile: 6\n"); err == nil {
		t.Error("a profile without statistics was taken")
	}
	note := held{heap: 20_480_000, stacks: 0, collections: 4, known: true}.until(got, 51_200_000)
	if !strings.HasPrefix(note, "heap 2.0, stacks 2.0, the rest") || !strings.Contains(note, " 1.0; 3 collections") {
		t.Error(note)
	}
	if note := (held{}).until(got, 1); note != "" {
		t.Error(note)
	}
}
