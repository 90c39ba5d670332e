package route

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// large builds n routes: many on few hosts, a quarter each exact and template,
// the rest prefixes.
func large(b *testing.B, n int) (Table[int], []string, []string) {
	b.Helper()
	batch := Table[int]{}.Edit()
	var hosts, paths []string
	for i := range n {
		host := fmt.Sprintf("api%d.example.com", i%(n/100+1))
		p := Pattern{Host: host, Kind: Prefix, Path: fmt.Sprintf("/team%d/service%d", i%97, i), Name: fmt.Sprint(i)}
		path := p.Path + "/items/42"
		switch i % 4 {
		case 0:
			p.Kind, path = Exact, p.Path
		case 1:
			p.Kind, p.Path = Template, p.Path+"/items/{id}"
		}
		if err := batch.Put(p, i); err != nil {
			b.Fatal(err)
		}
		hosts, paths = append(hosts, host), append(paths, path)
	}
	return batch.Table(), hosts, paths
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table, hosts, paths := large(b, n)
			order := rand.New(rand.NewPCG(1, 2)).Perm(n)
			params := make([]exchange.Param, 0, 4)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				k := order[i]
				if i++; i == n {
					i = 0
				}
				if v, ok := table.Lookup(hosts[k], "GET", paths[k], &params, nil); !ok || v != k {
					b.Fatal(v, ok)
				}
			}
		})
	}
}

func BenchmarkWith(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table, hosts, _ := large(b, n)
			p := Pattern{Host: hosts[n/2], Kind: Prefix, Path: "/team1/new", Name: "new"}
			b.ReportAllocs()
			for b.Loop() {
				changed, err := table.With(p, 1)
				if err != nil || changed.Len() != n+1 {
					b.Fatal(err)
				}
				if changed = changed.Without(p); changed.Len() != n {
					b.Fatal(changed.Len())
				}
			}
		})
	}
}

func BenchmarkBuild(b *testing.B) {
	for b.Loop() {
		large(b, 100_000)
	}
}
