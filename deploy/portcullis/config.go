package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// waitFlags are the flags of commands that commit and then wait.
type waitFlags struct {
	timeout time.Duration
	noWait  bool
	reason  string
}

func (w *waitFlags) add(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&w.timeout, "timeout", 30*time.Second, "how long to wait for the nodes")
	cmd.Flags().BoolVar(&w.noWait, "no-wait", false, "return once committed, without waiting for the nodes")
	cmd.Flags().StringVarP(&w.reason, "reason", "m", "", "why; kept in the history")
}

func (w *waitFlags) wait() *durationpb.Duration {
	if w.noWait {
		return nil
	}
	return durationpb.New(w.timeout)
}

func (w *waitFlags) context(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, callTimeout+w.timeout)
}

// load decodes documents from files, folders (*.yaml, *.yml, *.json) and, as
// "-", standard input.
func load(paths []string, stdin io.Reader) ([]config.Document, error) {
	if len(paths) == 0 {
		return nil, errors.New("nothing to read: name files with -f ('-' is standard input)")
	}
	var docs []config.Document
	var problems config.Problems
	read := func(name string, r io.Reader) error {
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		found, err := config.Decode(name, data)
		var more config.Problems
		if errors.As(err, &more) {
			problems = append(problems, more...)
			return nil
		}
		docs = append(docs, found...)
		return err
	}
	for _, path := range paths {
		if path == "-" {
			if err := read("<stdin>", stdin); err != nil {
				return nil, err
			}
			continue
		}
		err := filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			if ext := filepath.Ext(name); name != path && ext != ".yaml" && ext != ".yml" && ext != ".json" {
				return nil
			}
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			return read(name, bytes.NewReader(data))
		})
		if err != nil {
			return nil, err
		}
	}
	if len(problems) > 0 {
		return nil, invalid(problems, nil)
	}
	if len(docs) == 0 {
		return nil, errors.New("no documents found in " + strings.Join(paths, ", "))
	}
	return docs, nil
}

func changeOf(docs []config.Document) *adminv1.Change {
	change := &adminv1.Change{}
	for _, doc := range docs {
		change.Upserts = append(change.Upserts, doc.Resource)
	}
	return change
}

func (c *cli) apply() *cobra.Command {
	var files []string
	var at int64
	var flags waitFlags
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Write documents as one revision and wait until the nodes run it", Args: cobra.NoArgs,
		Example: "  portcullis apply -f routes.yaml -m 'open the orders API'\n  cat routes.yaml | portcullis apply -f -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			docs, err := load(files, cmd.InOrStdin())
			if err != nil {
				return err
			}
			client, closeClient, err := c.dial()
			if err != nil {
				return err
			}
			defer closeClient()
			ctx, cancel := flags.context(cmd.Context())
			defer cancel()
			req := &adminv1.ApplyRequest{Change: changeOf(docs), Reason: flags.reason, WaitFor: flags.wait()}
			if at > 0 {
				status, err := client.Status(ctx, &adminv1.StatusRequest{})
				if err != nil {
					return err
				}
				req.At = &controlv1.Version{Epoch: status.Revision.Epoch, Revision: at}
			}
			stop := progress(cmd, "committing and waiting for the nodes")
			resp, err := client.Apply(ctx, req)
			stop()
			if err != nil {
				return located(err, docs)
			}
			advise(cmd, docs)
			err = c.print(cmd, resp, func(w io.Writer) error { return printChanges(cmd, w, resp.Changes, false) })
			if len(resp.Changes) == 0 {
				unchanged(c.verdict(cmd), resp.Version)
				return err
			}
			return errors.Join(err, convergence(c.verdict(cmd), resp.Version, resp.Convergence))
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder or '-'; may be repeated")
	cmd.Flags().Int64Var(&at, "at", 0, "refuse when the configuration has changed since this revision (exit code 4)")
	flags.add(cmd)
	return cmd
}

func (c *cli) plan() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use: "plan -f FILE", Short: "Show what apply would change, field by field; exit code 2 when it would", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			docs, err := load(files, cmd.InOrStdin())
			if err != nil {
				return err
			}
			resp, err := c.planned(cmd.Context(), docs)
			if err != nil {
				return err
			}
			advise(cmd, docs)
			err = c.print(cmd, resp, func(w io.Writer) error {
				if len(resp.Changes) == 0 {
					fmt.Fprintf(w, "no changes: the cluster is as the files say (revision %s)\n", versionText(resp.At))
				}
				return printChanges(cmd, w, resp.Changes, true)
			})
			if err == nil && len(resp.Changes) > 0 {
				err = errorOf(exitPending, nil)
			}
			return err
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder or '-'; may be repeated")
	return cmd
}

// planned asks the cluster what it would say to the documents.
func (c *cli) planned(ctx context.Context, docs []config.Document) (*adminv1.PlanResponse, error) {
	client, closeClient, err := c.dial()
	if err != nil {
		return nil, err
	}
	defer closeClient()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := client.Plan(ctx, &adminv1.PlanRequest{Change: changeOf(docs)})
	if err != nil {
		return nil, located(err, docs)
	}
	if len(resp.Problems) > 0 {
		var problems config.Problems
		for _, p := range resp.Problems {
			problems = append(problems, config.ProblemOf(p))
		}
		return nil, invalid(problems, docs)
	}
	return resp, nil
}

func (c *cli) validate() *cobra.Command {
	var files []string
	var cluster bool
	cmd := &cobra.Command{
		Use: "validate -f FILE", Short: "Check documents by themselves, or against the cluster; exit code 3 when they are wrong", Args: cobra.NoArgs,
		Long: `Check documents without writing anything.

By default no cluster is needed: the files must hold all that they refer to,
besides the workspace default and the issuer local. With --cluster they are
checked together with what the cluster holds.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			docs, err := load(files, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if cluster {
				if _, err := c.planned(cmd.Context(), docs); err != nil {
					return err
				}
			} else if err := validateAlone(docs); err != nil {
				return err
			}
			advise(cmd, docs)
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d documents are valid\n", len(docs))
			return err
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder or '-'; may be repeated")
	cmd.Flags().BoolVar(&cluster, "cluster", false, "check against what the cluster holds")
	return cmd
}

func validateAlone(docs []config.Document) error {
	resources := config.Initial("https://local.invalid")
	var credentials []*configv1.Resource
	for _, doc := range docs {
		if config.KeyOf(doc.Resource).Kind == "Credential" {
			credentials = append(credentials, doc.Resource)
			continue
		}
		key := config.KeyOf(doc.Resource)
		resources = slices.DeleteFunc(resources, func(r *configv1.Resource) bool { return config.KeyOf(r) == key })
		resources = append(resources, doc.Resource)
	}
	checked, err := config.Check(resources)
	for _, one := range credentials {
		err = errors.Join(err, config.CheckCredential(checked, one))
	}
	var problems config.Problems
	if errors.As(err, &problems) {
		return invalid(problems, docs)
	}
	return err
}

func printChanges(cmd *cobra.Command, w io.Writer, changes []*adminv1.ResourceChange, fields bool) error {
	for _, change := range changes {
		sign, code := "~", "33"
		switch change.Action {
		case adminv1.Action_ACTION_CREATE:
			sign, code = "+", "32"
		case adminv1.Action_ACTION_DELETE:
			sign, code = "-", "31"
		}
		fmt.Fprintln(w, colour(cmd, code, sign+" "+config.KeyOfProto(change.Key).String()))
		if !fields {
			continue
		}
		for _, field := range change.Fields {
			switch {
			case field.Before == "":
				fmt.Fprintf(w, "    + %s: %s\n", field.Path, field.After)
			case field.After == "":
				fmt.Fprintf(w, "    - %s: %s\n", field.Path, field.Before)
			default:
				fmt.Fprintf(w, "    ~ %s: %s -> %s\n", field.Path, field.Before, field.After)
			}
		}
	}
	return nil
}

// documentJSON is the document as JSON, with the same spelling as in YAML.
func documentJSON(r *configv1.Resource) ([]byte, error) {
	var text bytes.Buffer
	if err := config.EncodeYAML(&text, r); err != nil {
		return nil, err
	}
	var value any
	if err := yaml.Load(text.Bytes(), &value); err != nil {
		return nil, err
	}
	return json.Marshal(value)
}

// printResources writes documents, a table of them, or JSON.
func (c *cli) printResources(cmd *cobra.Command, resources []*configv1.Resource, one bool) error {
	switch c.output {
	case "yaml":
		return config.EncodeYAML(cmd.OutOrStdout(), resources...)
	case "json":
		var parts []string
		for _, r := range resources {
			data, err := documentJSON(r)
			if err != nil {
				return err
			}
			parts = append(parts, string(data))
		}
		if one {
			return c.printJSON(cmd, []byte(parts[0]))
		}
		return c.printJSON(cmd, []byte("["+strings.Join(parts, ",")+"]"))
	}
	return c.print(cmd, nil, func(w io.Writer) error {
		row(w, "KIND", "WORKSPACE", "NAME", "LABELS")
		for _, r := range resources {
			key := config.KeyOf(r)
			var labels []string
			for name, value := range r.Metadata.Labels {
				labels = append(labels, name+"="+value)
			}
			slices.Sort(labels)
			row(w, key.Kind, key.Workspace, key.Name, strings.Join(labels, ","))
		}
		return nil
	})
}
