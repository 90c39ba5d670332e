package main

import (
	"slices"
	"strings"
)

// cellName names what is loaded: one peer in one scenario.
type cellName struct{ scenario, peer string }

func (c cellName) String() string { return c.scenario + "/" + c.peer }

// seriesKey is a cell in the group that it was measured in: what goals compare is
// of one group.
type seriesKey struct {
	group string
	cell  cellName
}

// member is a peer in a scenario, as part of a group.
type member struct {
	scenario scenario
	peer     peer
	// often members are loaded in every pass, the others in one of each round.
	often bool
}

func (m member) cell() cellName { return cellName{m.scenario.name, m.peer.name} }

// group is what is measured within one short period, slice by slice in turn: all
// peers of a scenario, and what goals compare it with.
type group struct {
	name    string
	members []member
}

// near are the peers that cost about as much as Portcullis: their ratios are worth
// many slices. The others cost several times as much.
var near = []string{"portcullis", "nginx", "haproxy", "nginx-lua"}

// plan returns the groups of a run over these peers.
func plan(asked func(scenario string) bool, peers []peer) (all []group) {
	for _, s := range scenarios() {
		if s.beside || !asked(s.name) {
			continue
		}
		g := group{name: s.name}
		for _, p := range peers {
			for _, each := range scenarios() {
				name := cellName{each.name, p.name}
				if each.asks(p) && (each.name == s.name || compared(s.name, name)) {
					g.members = append(g.members, member{each, p, closely(s.name, name)})
				}
			}
		}
		all = append(all, g)
	}
	return all
}

// compared is whether a goal of the group is about the cell.
func compared(group string, name cellName) bool {
	return slices.ContainsFunc(goals(), func(g goal) bool { return g.group == group && (g.of == name || g.by == name) })
}

// closely is whether a goal of the group compares the cell with one that costs
// about as much.
func closely(group string, name cellName) bool {
	// A large answer costs all of them what it costs to copy it.
	alike := func(peer string) bool {
		return group == largeScenario || slices.Contains(near, strings.TrimSuffix(peer, twin))
	}
	return slices.ContainsFunc(goals(), func(g goal) bool {
		return g.group == group && (g.of == name || g.by == name) && alike(g.of.peer) && alike(g.by.peer)
	})
}

// pass returns the members to load in one pass of a round, in their order. Each
// begins with another member and runs in the other direction than the one before:
// no member always follows the same one, or comes when a group is still new.
func (g group) pass(passes, round, pass int) []member {
	var all []member
	for _, m := range g.members {
		if m.often || pass == round%passes {
			all = append(all, m)
		}
	}
	if len(all) == 0 {
		return nil
	}
	turn := round*passes + pass
	if turn%2 == 1 {
		slices.Reverse(all)
	}
	at := turn % len(all)
	return append(slices.Clone(all[at:]), all[:at]...)
}

// slicesOf is how many slices a round of these groups has.
func slicesOf(groups []group, passes int) (n int) {
	for _, g := range groups {
		for pass := range passes {
			n += len(g.pass(passes, 0, pass))
		}
	}
	return n
}
