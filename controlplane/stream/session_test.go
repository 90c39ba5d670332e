package stream

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
	"portcullis.dev/portcullis/pkg/config"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestTranscripts runs each transcript: a line is a thing that happens, the
// indented lines after it are what the session then wants.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			w := &world{}
			for line := range strings.Lines(string(want)) {
				if strings.HasPrefix(line, "  ") {
					continue
				}
				got.WriteString(line)
				if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				for _, out := range w.do(t, line) {
					fmt.Fprintf(&got, "  %s\n", out)
				}
			}
			if *update {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != string(want) {
				t.Errorf("transcript differs; run with -update and read the diff\n%s", got.String())
			}
		})
	}
}

// world is a session and the view that it is given.
type world struct {
	session Session
	view    View
}

func (w *world) do(t *testing.T, line string) []string {
	f := strings.Fields(line)
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	var err error
	switch f[0] {
	case "head": // head VERSION [REVOCATIONS [OLDEST]]
		w.view.Head = parse(t, f[1])
		if arg(2) != "" {
			w.view.Revocations = parse(t, f[2]).Revision
		}
		if arg(3) != "" {
			w.view.Oldest = parse(t, f[3])
		}
		w.view.DigestAt = func(v config.Version) (Digest, bool) { return digestOf(v), true }
	case "hello": // hello VERSION [bad|none]
		v := parse(t, f[1])
		err = w.session.Hello(&controlv1.Hello{Version: v.Proto(), Digest: digestArg(v, arg(2))})
	case "report": // report VERSION ok|rejected RUNNING [bad|none]
		running := parse(t, f[3])
		r := &controlv1.Report{Version: parse(t, f[1]).Proto(), Running: running.Proto(), Digest: digestArg(running, arg(4))}
		if f[2] == "rejected" {
			r.Problems = []*controlv1.Problem{{Reason: "no"}}
		}
		err = w.session.Report(r)
	case "missed": // missed RUNNING HELD-REVOCATIONS
		running := parse(t, f[1])
		err = w.session.Report(&controlv1.Report{Running: running.Proto(), Digest: digestArg(running, ""), Revocations: parse(t, f[2]).Proto()})
	case "begin": // begin VERSION
		if !w.session.Begin(parse(t, f[1])) {
			return []string{"refused"}
		}
	default:
		t.Fatalf("unknown line %q", line)
	}
	if err != nil {
		return []string{"error: " + err.Error()}
	}
	var out []string
	for {
		s := w.session.Next(w.view)
		switch s.Kind {
		case Idle:
			return append(out, "idle")
		case Full:
			return append(out, fmt.Sprintf("full in place of %s", s.From))
		}
		out = append(out, fmt.Sprintf("%s %s..%s", s.Kind, s.From, s.To))
	}
}

func parse(t *testing.T, s string) config.Version {
	v := config.Version{Epoch: 1}
	if _, err := fmt.Sscanf(s, "%d.%d", &v.Epoch, &v.Revision); err == nil {
		return v
	}
	v.Epoch = 1
	if _, err := fmt.Sscanf(s, "%d", &v.Revision); err != nil {
		t.Fatalf("version %q: %v", s, err)
	}
	if v.Revision == 0 {
		return config.Version{}
	}
	return v
}

func digestOf(v config.Version) (d Digest) {
	binary.BigEndian.PutUint64(d[:], v.Epoch)
	binary.BigEndian.PutUint64(d[8:], uint64(v.Revision))
	return d
}

func digestArg(v config.Version, word string) []byte {
	d := digestOf(v)
	switch word {
	case "none":
		return nil
	case "bad":
		d[31] ^= 1
	}
	return d[:]
}

// TestSessionNeverRegresses drives a session with anything a node and a hub can
// say, in any order, and holds it to its promise.
func TestSessionNeverRegresses(t *testing.T) { rapid.Check(t, neverRegresses) }

func FuzzSessionNeverRegresses(f *testing.F) { f.Fuzz(rapid.MakeFuzz(neverRegresses)) }

func neverRegresses(t *rapid.T) {
	version := rapid.Custom(func(t *rapid.T) config.Version {
		v := config.Version{Epoch: rapid.Uint64Range(0, 3).Draw(t, "epoch"), Revision: rapid.Int64Range(-1, 12).Draw(t, "revision")}
		if v.Epoch == 0 && rapid.Bool().Draw(t, "zero") {
			v.Revision = 0
		}
		return v
	})
	digest := rapid.Custom(func(t *rapid.T) []byte {
		d := digestOf(version.Draw(t, "digest of"))
		return d[:rapid.SampledFrom([]int{0, 31, 32}).Draw(t, "length")]
	})
	raw := func(v config.Version) *controlv1.Version {
		return &controlv1.Version{Epoch: v.Epoch, Revision: v.Revision}
	}
	var s Session
	var newest config.Version // newest that the node holds or was sent
	see := func(v config.Version, what string) {
		if v.Compare(newest) < 0 {
			t.Fatalf("%s leads to %v after %v", what, v, newest)
		}
		newest = v
	}
	for range rapid.IntRange(1, 40).Draw(t, "steps") {
		switch rapid.IntRange(0, 4).Draw(t, "what") {
		case 0:
			if s.Hello(&controlv1.Hello{Version: raw(version.Draw(t, "held")), Digest: digest.Draw(t, "digest")}) == nil {
				newest = s.Held()
			}
		case 1:
			r := &controlv1.Report{
				Version: raw(version.Draw(t, "about")), Running: raw(version.Draw(t, "running")),
				Digest: digest.Draw(t, "digest"), Revocations: raw(version.Draw(t, "revocations")),
			}
			if rapid.Bool().Draw(t, "answers") {
				r.Version, r.Running = raw(s.InFlight()), raw(s.InFlight())
			}
			if rapid.Bool().Draw(t, "rejects") {
				r.Problems = []*controlv1.Problem{{}}
				r.Running = raw(s.Held())
			}
			held := s.Held()
			if s.Report(r) == nil && s.Held().Compare(held) < 0 {
				t.Fatalf("a report moved the node back from %v to %v", held, s.Held())
			}
		case 2:
			at := version.Draw(t, "full at")
			inflight := s.InFlight()
			if s.Begin(at) {
				see(at, "full")
				if !inflight.IsZero() {
					t.Fatalf("full at %v while %v is under way", at, inflight)
				}
			}
		default:
			v := View{Head: version.Draw(t, "head"), Oldest: version.Draw(t, "oldest"), Revocations: rapid.Int64Range(0, 12).Draw(t, "revocations")}
			v.DigestAt = func(v config.Version) (Digest, bool) { return digestOf(v), true }
			held, inflight := s.Held(), s.InFlight()
			switch step := s.Next(v); step.Kind {
			case Delta:
				see(step.To, "delta")
				if step.From != held || step.To.Compare(held) <= 0 || !inflight.IsZero() || held.IsZero() || step.To.Epoch != held.Epoch {
					t.Fatalf("delta %v..%v to a node that holds %v and was sent %v", step.From, step.To, held, inflight)
				}
			case Revocations:
				if step.To.Compare(step.From) <= 0 || step.From.Epoch != step.To.Epoch || v.Oldest.Compare(step.From) > 0 {
					t.Fatalf("revocations %v..%v with a ring from %v", step.From, step.To, v.Oldest)
				}
			}
		}
	}
}
