package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func seeds(f *testing.F) {
	f.Add([]byte(shop))
	f.Add([]byte(everything))
	files, err := filepath.Glob("testdata/mistakes/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
}

// FuzzDecode: Decode never panics, its errors have places, and what it accepts
// comes back the same through EncodeYAML.
func FuzzDecode(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := Decode("f.yaml", data)
		if err != nil {
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("not Problems: %v", err)
			}
			lines := bytes.Count(data, []byte("\n")) + 2
			for _, p := range problems {
				if p.File != "f.yaml" || p.Line < 1 || p.Line > lines || p.Column < 1 || p.Reason == "" {
					t.Fatalf("no place: %+v", p)
				}
			}
			return
		}
		var rs []*configv1.Resource
		for _, d := range docs {
			rs = append(rs, d.Resource)
		}
		var text bytes.Buffer
		if err := EncodeYAML(&text, rs...); err != nil {
			t.Fatal(err)
		}
		back, err := Decode("back.yaml", text.Bytes())
		if err != nil || len(back) != len(rs) {
			t.Fatalf("%d documents, %v:\n%s", len(back), err, text.Bytes())
		}
		for i := range rs {
			if !proto.Equal(rs[i], back[i].Resource) {
				t.Fatalf("%v\nbecame\n%v\nthrough\n%s", rs[i], back[i].Resource, text.Bytes())
			}
		}
	})
}

// FuzzCheck: Check never panics on resources as they come off the wire, what it
// accepts it accepts again, and applying it one by one to nothing, in an order in
// which that works, gives the same.
func FuzzCheck(f *testing.F) {
	for _, text := range []string{shop, seed, everything[len("\n---\n"):]} {
		docs, err := Decode("seed.yaml", []byte(text))
		if err != nil {
			f.Fatal(err)
		}
		var all []byte
		for _, d := range docs {
			data, err := proto.Marshal(d.Resource)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
			all = append(append(all, byte(len(data)>>8), byte(len(data))), data...)
		}
		f.Add(all)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var rs []*configv1.Resource
		var one configv1.Resource
		if proto.Unmarshal(data, &one) == nil {
			rs = append(rs, &one)
		}
		for len(data) > 2 {
			n := min(int(data[0])<<8|int(data[1]), len(data)-2)
			r := &configv1.Resource{}
			if proto.Unmarshal(data[2:2+n], r) == nil {
				rs = append(rs, r)
			}
			data = data[2+n:]
		}
		c, err := Check(rs)
		if err != nil {
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("not Problems: %v", err)
			}
			return
		}
		var again []*configv1.Resource
		for r := range c.All() {
			again = append(again, r)
			Diff(nil, r)
		}
		Advise(again, time.Unix(0, 0))
		d, err := Check(again)
		if err != nil || d.Digest() != c.Digest() || d.Len() != c.Len() {
			t.Fatalf("accepted once: %v", err)
		}
		next, affected, err := c.Apply(Delta{Upserts: again})
		if err != nil || !affected.Empty() || next.Digest() != c.Digest() {
			t.Fatalf("the same again changed something: %+v, %v", affected, err)
		}
	})
}
