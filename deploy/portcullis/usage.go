package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// explain makes what is wrong with a command line say what would be right: each
// command's arguments, and the subcommands of those that only group others. It
// is called once, with the whole tree.
func explain(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		explain(sub)
	}
	switch {
	case !cmd.HasParent():
	case cmd.HasSubCommands() && !cmd.Runnable():
		// Without a Run of its own, cobra prints the help and succeeds, and a script
		// with a typing error would go on.
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return hinted(cmd, fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), similar(cmd, args[0])))
			}
			return cmd.Help()
		}
	case cmd.Args != nil:
		accepts := cmd.Args
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := accepts(cmd, args)
			switch {
			case err == nil:
				return nil
			case len(args) == 0:
				return fmt.Errorf("too few arguments\nUsage: %s", cmd.UseLine())
			case accepts(cmd, nil) == nil:
				return fmt.Errorf("unexpected argument %q\nUsage: %s", args[len(args)-1], cmd.UseLine())
			}
			return fmt.Errorf("%w\nUsage: %s", err, cmd.UseLine())
		}
	}
}

// similar suggests the subcommand that was probably meant.
func similar(cmd *cobra.Command, name string) string {
	// Cobra sets the distance only for the root.
	cmd.SuggestionsMinimumDistance = 2
	if names := cmd.SuggestionsFor(name); len(names) > 0 {
		return ": did you mean " + strings.Join(names, " or ") + "?"
	}
	return ""
}

// hinted says where to read on.
func hinted(cmd *cobra.Command, err error) error {
	return fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath())
}
