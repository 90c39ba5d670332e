// portcullis is the one shipped binary: a cluster in one process, a control
// plane, a node, and the command line that operates them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// release is set by the linker.
var release = "devel"

// Exit codes, part of the command line's contract.
const (
	exitError      = 1
	exitPending    = 2
	exitInvalid    = 3
	exitConflict   = 4
	exitNotInTime  = 5
	usageNoContext = "no context: name a context file with --context or PORTCULLIS_CONTEXT; `portcullis standalone` writes one into its data directory"
)

// exitCode is an error that says how the process ends. A nil Err prints nothing:
// what there was to say has been said.
type exitCode struct {
	code int
	err  error
}

func (e *exitCode) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitCode) Unwrap() error { return e.err }

func main() { os.Exit(run(os.Args[1:])) }

// run executes the command line and returns the exit code.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks; with the handler gone the second one ends the process.
	context.AfterFunc(ctx, stop)
	cmd := newRoot()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	coded := fromStatus(err)
	if message := coded.Error(); message != "" {
		fmt.Fprintln(os.Stderr, "error:", message)
	}
	return coded.code
}

// cli is what the commands share: the global flags.
type cli struct {
	contextFile string
	output      string
}

func newRoot() *cobra.Command {
	c := &cli{}
	root := &cobra.Command{
		Use:   "portcullis",
		Short: "A secure API gateway that runs as a cluster",
		Long: `Portcullis is a secure API gateway that runs as a cluster.

Start one with 'portcullis standalone --demo', then declare routes with
'portcullis apply -f FILE'. Exit codes: 0 done, 1 error, 2 changes pending,
3 validation failed, 4 conflict, 5 not converged in time.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       release,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return hinted(cmd, err)
	})
	root.PersistentFlags().StringVar(&c.contextFile, "context", "", "context file: which cluster to talk to, and as whom (default $PORTCULLIS_CONTEXT)")
	root.PersistentFlags().StringVarP(&c.output, "output", "o", "table", "output format: table, json or yaml")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := cmd.ValidateRequiredFlags(); err != nil {
			return hinted(cmd, err)
		}
		switch c.output {
		case "table", "json", "yaml":
			return nil
		}
		return fmt.Errorf("--output %q: expected table, json or yaml", c.output)
	}
	group := func(id, title string, cmds ...*cobra.Command) {
		root.AddGroup(&cobra.Group{ID: id, Title: title})
		for _, cmd := range cmds {
			cmd.GroupID = id
			root.AddCommand(cmd)
		}
	}
	group("run", "Run:", c.standalone(), c.controlplane(), c.dataplane())
	group("config", "Configuration:", c.apply(), c.plan(), c.validate(), c.get(), c.delete(), c.history(), c.rollback(), c.schema())
	group("observe", "Observe:", c.status(), c.nodes(), c.wait(), c.why())
	group("access", "Access:", c.key(), c.token(), c.revoke(), c.operator(), c.joinToken(), c.contextCmd())
	root.AddCommand(&cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.output != "table" {
				return c.printValue(cmd, map[string]any{"version": release})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "portcullis", release)
			return err
		},
	})
	explain(root)
	return root
}

// errorOf wraps an error with the code that the process ends with.
func errorOf(code int, err error) error { return &exitCode{code, err} }

// codeOf finds the code in an error chain.
func codeOf(err error) (*exitCode, bool) {
	var coded *exitCode
	return coded, errors.As(err, &coded)
}
