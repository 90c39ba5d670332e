package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// print writes a message as -o asks; table writes the human form.
func (c *cli) print(cmd *cobra.Command, m proto.Message, table func(w io.Writer) error) error {
	if c.output == "table" {
		tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
		if err := table(tw); err != nil {
			return err
		}
		return tw.Flush()
	}
	data, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	return c.printJSON(cmd, data)
}

// printJSON writes JSON indented, or as YAML. It goes through a generic value,
// since protojson's spacing is deliberately unstable.
func (c *cli) printJSON(cmd *cobra.Command, data []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	// A time in seconds is not to become 1.7e+09.
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return err
	}
	return c.printValue(cmd, value)
}

// numbers turns JSON's numbers into those that YAML writes as numbers.
func numbers(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for name, member := range v {
			v[name] = numbers(member)
		}
	case []any:
		for i, member := range v {
			v[i] = numbers(member)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	}
	return value
}

// printValue writes a generic value as JSON, or as YAML.
func (c *cli) printValue(cmd *cobra.Command, value any) error {
	if c.output == "yaml" {
		out, err := yaml.Marshal(numbers(value))
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(out)
		return err
	}
	encoder := json.NewEncoder(cmd.OutOrStdout())
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

func row(w io.Writer, cells ...any) {
	texts := make([]string, len(cells))
	for i, cell := range cells {
		if texts[i] = fmt.Sprint(cell); texts[i] == "" {
			texts[i] = "-"
		}
	}
	fmt.Fprintln(w, strings.Join(texts, "\t"))
}

// ago prints how long ago a moment was, or "-".
func ago(at time.Time, now time.Time) string {
	if at.IsZero() || at.Unix() == 0 {
		return "-"
	}
	return now.Sub(at).Round(time.Second).String() + " ago"
}

func versionText(v *controlv1.Version) string {
	if v == nil {
		return "-"
	}
	return config.VersionOf(v).String()
}

// milliseconds prints a duration as people read it: 38 ms, 1.2 s.
func milliseconds(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", max(d.Milliseconds(), 1))
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// convergence prints what became of a committed version and returns exit code 5
// when not all nodes run it.
func convergence(w io.Writer, version *controlv1.Version, done *adminv1.Convergence) error {
	if done == nil {
		fmt.Fprintf(w, "revision %s committed\n", versionText(version))
		return nil
	}
	fmt.Fprintf(w, "revision %s committed; %d/%d nodes programmed in %s\n",
		versionText(version), done.Programmed, done.Total, milliseconds(done.Took.AsDuration()))
	if done.Converged {
		return nil
	}
	return behind(fmt.Sprintf("revision %s is committed, but %d of %d nodes do not run it:", versionText(version), len(done.Behind), done.Total), done)
}

// verdict is where a write says what became of it: on standard output for people,
// and beside it when standard output is for programs.
func (c *cli) verdict(cmd *cobra.Command) io.Writer {
	if c.output == "table" {
		return cmd.OutOrStdout()
	}
	return cmd.ErrOrStderr()
}

// behind names the nodes that do not run a version, and why, with exit code 5.
func behind(message string, done *adminv1.Convergence) error {
	lines := []string{message}
	for _, node := range done.Behind {
		why := "did not answer in time; it runs revision " + versionText(node.Version)
		if len(node.Problems) > 0 {
			why = "rejected it: " + config.ProblemOf(node.Problems[0]).Error()
		}
		lines = append(lines, "  "+node.Name+" "+why)
	}
	return errorOf(exitNotInTime, fmt.Errorf("%s", strings.Join(lines, "\n")))
}

// unchanged says that a write wrote nothing.
func unchanged(w io.Writer, version *controlv1.Version) {
	fmt.Fprintf(w, "no changes: the cluster is so already (revision %s)\n", versionText(version))
}

// progress says on a terminal that a call takes long, until stopped.
func progress(cmd *cobra.Command, what string) (stop func()) {
	file, ok := cmd.ErrOrStderr().(*os.File)
	if !ok || !capable(file) {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		started := time.Now()
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				fmt.Fprint(file, "\r\x1b[K")
				return
			case <-tick.C:
				fmt.Fprintf(file, "\r\x1b[K%s ... %s", what, time.Since(started).Round(time.Second))
			}
		}
	}()
	return func() { close(done); <-ended }
}

// colour wraps text in an SGR code, on a terminal without NO_COLOR.
func colour(cmd *cobra.Command, code, text string) string {
	file, ok := cmd.OutOrStdout().(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || !capable(file) {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// capable says whether a file is a terminal that understands control sequences.
func capable(file *os.File) bool {
	return os.Getenv("TERM") != "dumb" && term.IsTerminal(int(file.Fd()))
}
