package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/route"
)

// lookups is a table and requests that each meet one of its entries, in an order
// that the processor's caches cannot guess.
type lookups struct {
	table       route.Table[int]
	hosts, path []string
	order       []int
	params      []exchange.Param
}

// newLookups builds n routes on n/100 hosts: a quarter each exact and template,
// the rest prefixes.
func newLookups(n int) (*lookups, error) {
	l := &lookups{order: rand.New(rand.NewPCG(1, 2)).Perm(n), params: make([]exchange.Param, 0, 4)}
	batch := route.Table[int]{}.Edit()
	for i := range n {
		p := route.Pattern{
			Host: fmt.Sprintf("api%d.example.com", i%(n/100+1)), Kind: route.Prefix,
			Path: fmt.Sprintf("/team%d/service%d", i%97, i), Name: fmt.Sprint(i),
		}
		path := p.Path + "/items/42"
		switch i % 4 {
		case 0:
			p.Kind, path = route.Exact, p.Path
		case 1:
			p.Kind, p.Path = route.Template, p.Path+"/items/{id}"
		}
		if err := batch.Put(p, i); err != nil {
			return nil, err
		}
		l.hosts, l.path = append(l.hosts, p.Host), append(l.path, path)
	}
	l.table = batch.Table()
	return l, nil
}

func (l *lookups) one(i int) bool {
	k := l.order[i%len(l.order)]
	v, ok := l.table.Lookup(l.hosts[k], "GET", l.path[k], &l.params, nil)
	return ok && v == k
}

// lookupRounds is how often each size is measured; they alternate, so that a busy
// machine does not hit one size only.
const lookupRounds = 5

func measureLookup(ctx context.Context) ([]reading, error) {
	small, err := newLookups(10_000)
	if err != nil {
		return nil, err
	}
	large, err := newLookups(100_000)
	if err != nil {
		return nil, err
	}
	sizes := []*lookups{small, large}
	spent := make([][]time.Duration, len(sizes))
	missed := false
	for range lookupRounds {
		for i, l := range sizes {
			each, err := timePerCall(300_000, func(i int) { missed = !l.one(i) || missed })
			if err = errors.Join(err, ctx.Err()); err != nil {
				return nil, err
			}
			spent[i] = append(spent[i], each)
		}
	}
	var readings []reading
	for i, l := range sizes {
		at := 0
		n := allocations(1000, func() { missed = !l.one(at) || missed; at++ })
		readings = append(readings,
			took(median(spent[i]), "random order; processor time, median of %d rounds", lookupRounds), reading{value: n})
	}
	if missed {
		return nil, errors.New("a lookup found another route")
	}
	return readings, nil
}
