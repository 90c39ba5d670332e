package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/dataplane/gateway"
	"portcullis.dev/portcullis/dataplane/policy"
	"portcullis.dev/portcullis/pkg/telemetry"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	readmePath = "../../README.md"
	// In the README all requests go to the first node and all data lies here.
	readmeNode = "http://127.0.0.1:8080"
)

func readme(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(readmePath)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// section returns the README's text under a heading, up to the next of the same
// or a higher level.
func section(t *testing.T, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(readme(t), "\n"+heading+"\n")
	if !found {
		t.Fatalf("README.md has no %q", heading)
	}
	level, _, _ := strings.Cut(heading, " ")
	fenced := false
	var text strings.Builder
	for line := range strings.Lines(rest) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		hashes, _, ok := strings.Cut(line, " ")
		if !fenced && ok && hashes != "" && strings.Trim(hashes, "#") == "" && len(hashes) <= len(level) {
			break
		}
		text.WriteString(line)
	}
	return text.String()
}

var fence = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// blocks returns the shell blocks of a text.
func blocks(text string) []string {
	var found []string
	for _, match := range fence.FindAllStringSubmatch(text, -1) {
		found = append(found, match[1])
	}
	return found
}

// step is some commands and what their output must contain.
type step struct {
	commands string
	expect   []string
}

// steps cuts blocks at their "# ->" lines.
func steps(blocks []string) []step {
	var all []step
	for _, block := range blocks {
		var one step
		for line := range strings.Lines(block) {
			if want, ok := strings.CutPrefix(line, "# -> "); ok {
				one.expect = append(one.expect, strings.TrimSpace(want))
				continue
			}
			if len(one.expect) > 0 {
				all, one = append(all, one), step{}
			}
			one.commands += line
		}
		all = append(all, one)
	}
	return all
}

// TestReadmeTour runs the tour as it is written, with the ports and the place of
// the data replaced; on several nodes each request goes to another one.
func TestReadmeTour(t *testing.T) {
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("THE TOUR IS NOT TESTED: it needs %s: %v", tool, err)
		}
	}
	tour := steps(blocks(section(t, "## A five-minute tour")))
	if len(tour) < 15 {
		t.Fatalf("the tour has %d steps: the README's blocks are not found", len(tour))
	}
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s, err := startStandalone(dir, os.Environ(), "--demo", "--nodes", strconv.Itoa(nodes))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := s.stop(); err != nil {
					t.Errorf("standalone: %v", err)
				}
			}()
			runTour(t, dir, tour, s.addresses("node"))
		})
	}
}

// runTour runs all steps in one shell, as somebody does who pastes them.
func runTour(t *testing.T, dir string, tour []step, nodes []string) {
	var script strings.Builder
	next := 0
	script.WriteString("exec 2>&1\n")
	for i, one := range tour {
		commands := one.commands
		for strings.Contains(commands, readmeNode) {
			commands = strings.Replace(commands, readmeNode, "http://"+nodes[next%len(nodes)], 1)
			next++
		}
		fmt.Fprintf(&script, "%s\nprintf '\\n<end of %d>\\n'\n", commands, i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script.String())
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PORTCULLIS_CONTEXT="+filepath.Join(dir, "data", "context.yaml"))
	output, err := cmd.Output()
	if err != nil {
		t.Errorf("the tour's shell: %v", err)
	}
	rest := string(output)
	for i, one := range tour {
		said, after, found := strings.Cut(rest, fmt.Sprintf("\n<end of %d>\n", i))
		if !found {
			t.Fatalf("the tour did not come to its step %d:\n%s\n%s", i, one.commands, rest)
		}
		rest = after
		for _, want := range one.expect {
			if !strings.Contains(strings.ToLower(said), strings.ToLower(want)) {
				t.Errorf("step %d:\n%s\nsaid:\n%s\nwhich lacks %q", i, one.commands, said, want)
			}
		}
	}
}

// TestReadmeCommands keeps the two commands what they are.
func TestReadmeCommands(t *testing.T) {
	got := blocks(section(t, "## Two commands"))
	want := []string{"make run\n", "export PATH=$PWD/bin:$PATH PORTCULLIS_CONTEXT=$PWD/portcullis-data/context.yaml\n"}
	if !slices.Equal(got, want) {
		t.Fatalf("the two commands are %q, want %q", got, want)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(makefile), "./bin/portcullis standalone --demo --data-dir portcullis-data") {
		t.Fatal("make run does not start what the README says")
	}
	for _, target := range regexp.MustCompile(`(?m)^([a-z]+):.*## `).FindAllStringSubmatch(string(makefile), -1) {
		if target[1] != "help" && !strings.Contains(section(t, "## Development"), "| `make "+target[1]+"` |") {
			t.Errorf("the README's table of targets lacks make %s", target[1])
		}
	}
}

// rows returns the first cells of a section's tables, without backquotes.
func rows(t *testing.T, heading string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(section(t, heading)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if strings.HasPrefix(line, "| `") && len(cells) > 1 {
			found[strings.Trim(cells[0], " `")] = strings.TrimSpace(strings.Join(cells[1:], " | "))
		}
	}
	return found
}

func sameNames(t *testing.T, what string, documented map[string]string, want []string) {
	t.Helper()
	for _, name := range want {
		if documented[name] == "" {
			t.Errorf("README.md has no row for the %s %q", what, name)
		}
	}
	for name := range documented {
		if !slices.Contains(want, name) {
			t.Errorf("README.md has a row for the %s %q, which there is not", what, name)
		}
	}
}

// TestReadmeReference fails when a kind, a policy, one of their fields or a reason
// is missing in the README, or is in it and nowhere else.
func TestReadmeReference(t *testing.T) {
	documented := rows(t, "### Kinds")
	var kinds []string
	resource := (&configv1.Resource{}).ProtoReflect().Descriptor()
	specs := resource.Oneofs().ByName("spec").Fields()
	for i := range specs.Len() {
		message := specs.Get(i).Message()
		kind := string(message.Name())
		kinds = append(kinds, kind)
		if kind == "Policy" || kind == "Credential" {
			continue // its fields are the next table's; not all are for people to write
		}
		for j := range message.Fields().Len() {
			if field := message.Fields().Get(j).JSONName(); !strings.Contains(documented[kind], "`"+field) && !strings.Contains(documented[kind], field+"`") {
				t.Errorf("README.md: the row of %s lacks its field %s", kind, field)
			}
		}
	}
	sameNames(t, "kind", documented, kinds)

	documented = rows(t, "### Policies")
	var policies []string
	choices := (&configv1.Policy{}).ProtoReflect().Descriptor().Oneofs().ByName("kind").Fields()
	for i := range choices.Len() {
		choice := choices.Get(i)
		policies = append(policies, choice.JSONName())
		if choice.Message() == nil {
			continue
		}
		for j := range choice.Message().Fields().Len() {
			if field := choice.Message().Fields().Get(j).JSONName(); !strings.Contains(documented[choice.JSONName()], "`"+field) {
				t.Errorf("README.md: the row of %s lacks its field %s", choice.JSONName(), field)
			}
		}
	}
	sameNames(t, "policy", documented, policies)

	var reasons []string
	documented = rows(t, "### Reasons")
	for _, reason := range policy.Reasons() {
		reasons = append(reasons, string(reason))
		if want := fmt.Sprintf("%d | %s", reason.Status(), reason.Title()); documented[string(reason)] != want {
			t.Errorf("README.md says %q of %s, want %q", documented[string(reason)], reason, want)
		}
	}
	sameNames(t, "reason", documented, reasons)
}

// TestReadmeAccessLog fails when a field of the access log, or a way to cut an
// answer, is missing in the README, or is in it and nowhere else.
func TestReadmeAccessLog(t *testing.T) {
	var full telemetry.AccessEntry
	for i, v := 0, reflect.ValueOf(&full).Elem(); i < v.NumField(); i++ {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Int, reflect.Int64:
			f.SetInt(2)
		case reflect.Uint64:
			f.SetUint(2)
		}
	}
	full.Peer = netip.IPv6Loopback()
	var line map[string]any
	if err := json.Unmarshal(full.Append(nil), &line); err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for names, about := range rows(t, "### Access log") {
		for name := range strings.SplitSeq(names, "`, `") {
			documented[name] = about
		}
	}
	sameNames(t, "access log's field", documented, slices.Collect(maps.Keys(line)))
	var cuts []string
	for _, cut := range gateway.Cuts() {
		cuts = append(cuts, string(cut))
	}
	var said []string
	for _, match := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(documented["cut"], -1) {
		said = append(said, match[1])
	}
	if !slices.Equal(said, cuts) {
		t.Errorf("README.md says that answers are cut by %v, want %v", said, cuts)
	}
}

// TestReadmeFlags fails when the README names a command or flag that there is not.
func TestReadmeFlags(t *testing.T) {
	root := newRoot()
	var all []*cobra.Command
	commands := map[string]bool{"completion": true}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		all, commands[cmd.Name()] = append(all, cmd), true
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
	text := readme(t)
	for _, match := range regexp.MustCompile("[ `'(]--([a-z][a-z-]+)").FindAllStringSubmatch(text, -1) {
		has := func(cmd *cobra.Command) bool {
			return cmd.Flags().Lookup(match[1]) != nil || cmd.PersistentFlags().Lookup(match[1]) != nil
		}
		if match[1] != "help" && !slices.ContainsFunc(all, has) {
			t.Errorf("README.md names the flag --%s, which no command has", match[1])
		}
	}
	for _, match := range regexp.MustCompile("(?:^|[`|(] ?)portcullis ([a-z][a-z-]+)").FindAllStringSubmatch(text, -1) {
		if !commands[match[1]] {
			t.Errorf("README.md names the command %s, which there is not", match[1])
		}
	}
	exits := section(t, "### Command line")
	for code := range exitNotInTime + 1 {
		if !strings.Contains(exits, fmt.Sprintf("\n| %d | ", code)) {
			t.Errorf("README.md lacks the exit code %d", code)
		}
	}
}
