package main

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func everything(string) bool { return true }

// Both sides of every goal are measured in its group, and near ones in every pass.
func TestGoalsAreAboutTheirGroup(t *testing.T) {
	groups := map[string]group{}
	for _, g := range plan(everything, peers()) {
		groups[g.name] = g
	}
	for _, g := range goals() {
		for _, name := range []cellName{g.of, g.by} {
			at := slices.IndexFunc(groups[g.group].members, func(m member) bool { return m.cell() == name })
			if at < 0 {
				t.Errorf("%s: %s is not in group %s", g.figure, name, g.group)
				continue
			}
			if member := groups[g.group].members[at]; (g.by.peer == "nginx" || g.by.peer == "portcullis" || g.group == largeScenario) && !member.often {
				t.Errorf("%s: %s is in one pass only", g.figure, name)
			}
		}
		if g.bound < 0 {
			t.Errorf("%+v", g)
		}
	}
}

func TestPlan(t *testing.T) {
	few := slices.DeleteFunc(peers(), func(p peer) bool { return p.name != "portcullis" && p.name != "envoy" })
	got := plan(func(name string) bool { return name == "jwt-full" }, few)
	if len(got) != 1 || len(got[0].members) != 3 {
		t.Fatalf("%+v", got)
	}
	want := map[cellName]bool{{"plain", "portcullis"}: true, {"jwt-full", "portcullis"}: true, {"jwt-full", "envoy"}: false}
	for _, m := range got[0].members {
		if often, ok := want[m.cell()]; !ok || often != m.often {
			t.Errorf("%s often %v", m.cell(), m.often)
		}
	}
}

// In each round every member has as many slices as it should, and over the rounds
// none is always first or behind the same one.
func TestPasses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		passes, rounds := rapid.IntRange(1, 5).Draw(t, "passes"), rapid.IntRange(1, 6).Draw(t, "rounds")
		var g group
		for i := range rapid.IntRange(1, 9).Draw(t, "members") {
			g.members = append(g.members, member{scenario: scenario{name: string(rune('a' + i))}, often: rapid.Bool().Draw(t, "often")})
		}
		total := 0
		for round := range rounds {
			n := map[cellName]int{}
			for pass := range passes {
				for _, m := range g.pass(passes, round, pass) {
					n[m.cell()]++
					total++
				}
			}
			for _, m := range g.members {
				if want := map[bool]int{true: passes, false: 1}[m.often]; n[m.cell()] != want {
					t.Fatalf("round %d: %s has %d slices, want %d", round, m.cell(), n[m.cell()], want)
				}
			}
		}
		if want := rounds * slicesOf([]group{g}, passes); total != want {
			t.Fatalf("%d slices, foreseen are %d", total, want)
		}
	})
}

func TestPassesTakeTurns(t *testing.T) {
	var g group
	for _, name := range []string{"a", "b", "c"} {
		g.members = append(g.members, member{scenario: scenario{name: name}, often: true})
	}
	first, behind := map[string]int{}, map[string]int{}
	for round := range 2 {
		for pass := range 3 {
			all := g.pass(3, round, pass)
			first[all[0].scenario.name]++
			for i := range len(all) - 1 {
				behind[all[i].scenario.name+all[i+1].scenario.name]++
			}
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		if first[name] != 2 {
			t.Errorf("%s is first %d times of 6", name, first[name])
		}
	}
	if len(behind) != 6 {
		t.Errorf("who follows whom: %v", behind)
	}
}
