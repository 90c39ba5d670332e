package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// completionTimeout bounds how long a press of the tab key waits for the cluster.
const completionTimeout = 2 * time.Second

// kindOf finds a kind by its name in any case, singular or plural.
func kindOf(name string) (string, error) {
	for _, kind := range config.Kinds() {
		if strings.EqualFold(name, kind) || strings.EqualFold(name, kind+"s") ||
			strings.HasSuffix(kind, "y") && strings.EqualFold(name, strings.TrimSuffix(kind, "y")+"ies") {
			return kind, nil
		}
	}
	return "", fmt.Errorf("unknown kind %q, expected one of %s", name, strings.ToLower(strings.Join(config.Kinds(), ", ")))
}

// completeKinds offers kinds, then the names that the cluster has of that kind.
func (c *cli) completeKinds(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if len(args) > 0 {
		kind, err := kindOf(args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		client, closeClient, err := c.dial()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer closeClient()
		ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
		defer cancel()
		workspace, _ := cmd.Flags().GetString("workspace")
		// Without an answer there is nothing to offer, and nowhere to say so.
		resources, _ := listAll(ctx, client, kind, workspace)
		for _, r := range resources {
			names = append(names, r.Metadata.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	for _, kind := range config.Kinds() {
		names = append(names, strings.ToLower(kind))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) get() *cobra.Command {
	var workspace string
	cmd := &cobra.Command{
		Use: "get [KIND [NAME]]", Short: "Show documents", Args: cobra.MaximumNArgs(2), ValidArgsFunction: c.completeKinds,
		Example: "  portcullis get\n  portcullis get routes -w shop\n  portcullis get route orders -w shop -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			kind := ""
			if len(args) > 0 {
				var err error
				if kind, err = kindOf(args[0]); err != nil {
					return err
				}
			}
			client, closeClient, err := c.dial()
			if err != nil {
				return err
			}
			defer closeClient()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			if len(args) == 2 {
				resp, err := client.Get(ctx, &adminv1.GetRequest{Kind: kind, Workspace: workspace, Name: args[1]})
				if err != nil {
					return err
				}
				return c.printResources(cmd, []*configv1.Resource{resp.Resource}, true)
			}
			resources, err := listAll(ctx, client, kind, workspace)
			if err != nil {
				return err
			}
			return c.printResources(cmd, resources, false)
		},
	}
	cmd.Flags().StringVarP(&workspace, "workspace", "w", "", "workspace (a single document: default; a list: all)")
	return cmd
}

func listAll(ctx context.Context, client adminv1.AdminServiceClient, kind, workspace string) ([]*configv1.Resource, error) {
	var all []*configv1.Resource
	for token := ""; ; {
		resp, err := client.List(ctx, &adminv1.ListRequest{Kind: kind, Workspace: workspace, PageToken: token})
		if err != nil {
			return nil, err
		}
		all = append(all, resp.Resources...)
		if token = resp.NextPageToken; token == "" {
			return all, nil
		}
	}
}

func (c *cli) delete() *cobra.Command {
	var workspace string
	var files []string
	var flags waitFlags
	cmd := &cobra.Command{
		Use: "delete {KIND NAME... | -f FILE}", Short: "Delete documents as one revision", ValidArgsFunction: c.completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			change := &adminv1.Change{}
			switch {
			case len(files) > 0 && len(args) == 0:
				docs, err := load(files, cmd.InOrStdin())
				if err != nil {
					return err
				}
				for _, doc := range docs {
					change.Deletes = append(change.Deletes, config.KeyOf(doc.Resource).Proto())
				}
			case len(files) == 0 && len(args) >= 2:
				kind, err := kindOf(args[0])
				if err != nil {
					return err
				}
				for _, name := range args[1:] {
					key := &controlv1.ResourceKey{Kind: kind, Workspace: workspace, Name: name}
					if kind == "Workspace" {
						key.Workspace = ""
					}
					change.Deletes = append(change.Deletes, key)
				}
			default:
				return errors.New("name either a kind and names, or files with -f")
			}
			client, closeClient, err := c.dial()
			if err != nil {
				return err
			}
			defer closeClient()
			ctx, cancel := flags.context(cmd.Context())
			defer cancel()
			stop := progress(cmd, "committing and waiting for the nodes")
			resp, err := client.Apply(ctx, &adminv1.ApplyRequest{Change: change, Reason: flags.reason, WaitFor: flags.wait()})
			stop()
			if err != nil {
				return located(err, nil)
			}
			if len(resp.Changes) == 0 {
				return errors.New("nothing by that name: nothing was deleted")
			}
			err = c.print(cmd, resp, func(w io.Writer) error { return printChanges(cmd, w, resp.Changes, false) })
			return errors.Join(err, convergence(c.verdict(cmd), resp.Version, resp.Convergence))
		},
	}
	cmd.Flags().StringVarP(&workspace, "workspace", "w", config.DefaultWorkspace, "workspace")
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "delete what these files declare")
	flags.add(cmd)
	return cmd
}

func (c *cli) history() *cobra.Command {
	var limit int32
	var workspace string
	cmd := &cobra.Command{
		Use: "history", Short: "List revisions: when, who, why, what", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, closeClient, err := c.dial()
			if err != nil {
				return err
			}
			defer closeClient()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			resp, err := client.History(ctx, &adminv1.HistoryRequest{Limit: limit, Workspace: workspace})
			if err != nil {
				return err
			}
			return c.print(cmd, resp, func(w io.Writer) error {
				row(w, "REVISION", "TIME", "AUTHOR", "CHANGES", "REASON")
				for _, entry := range resp.Entries {
					row(w, versionText(entry.Version), entry.Time.AsTime().Local().Format("2006-01-02 15:04:05"), entry.Author, summary(entry.Changes, entry.Revocations), entry.Reason)
				}
				return nil
			})
		},
	}
	cmd.Flags().Int32VarP(&limit, "limit", "n", 20, "how many, newest first")
	cmd.Flags().StringVarP(&workspace, "workspace", "w", "", "only changes that touch this workspace")
	return cmd
}

// summary names the first changes, counts the rest, and says of what kind the
// revocations are: whom they name is stored as a hash only.
func summary(changes []*adminv1.ResourceChange, revocations []controlv1.RevocationKind) string {
	var parts []string
	for _, kind := range revocations {
		parts = append(parts, "revoked a "+strings.ToLower(strings.TrimPrefix(kind.String(), "REVOCATION_KIND_")))
	}
	parts = slices.Compact(parts)
	for i, change := range changes {
		if i == 3 {
			parts = append(parts, fmt.Sprintf("and %d more", len(changes)-i))
			break
		}
		sign := map[adminv1.Action]string{adminv1.Action_ACTION_CREATE: "+", adminv1.Action_ACTION_UPDATE: "~", adminv1.Action_ACTION_DELETE: "-"}[change.Action]
		parts = append(parts, sign+config.KeyOfProto(change.Key).String())
	}
	return strings.Join(parts, ", ")
}

func (c *cli) rollback() *cobra.Command {
	var flags waitFlags
	var revision int64
	cmd := &cobra.Command{
		Use: "rollback REVISION", Short: "Write a new revision that is as an older one was; revocations stay", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := fmt.Sscanf(args[0], "%d", &revision); err != nil || fmt.Sprint(revision) != args[0] {
				return fmt.Errorf("revision %q: expected a number from `portcullis history`", args[0])
			}
			client, closeClient, err := c.dial()
			if err != nil {
				return err
			}
			defer closeClient()
			ctx, cancel := flags.context(cmd.Context())
			defer cancel()
			stop := progress(cmd, "committing and waiting for the nodes")
			resp, err := client.Rollback(ctx, &adminv1.RollbackRequest{Revision: revision, Reason: flags.reason, WaitFor: flags.wait()})
			stop()
			if err != nil {
				return located(err, nil)
			}
			err = c.print(cmd, resp, func(w io.Writer) error {
				return printChanges(cmd, w, resp.Changes, false)
			})
			if len(resp.Changes) == 0 {
				unchanged(c.verdict(cmd), resp.Version)
				return err
			}
			return errors.Join(err, convergence(c.verdict(cmd), resp.Version, resp.Convergence))
		},
	}
	flags.add(cmd)
	return cmd
}

func (c *cli) schema() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of all kinds and policies, for editors", Args: cobra.NoArgs,
		Example: "  portcullis schema > portcullis.schema.json\n  # first line of a YAML file:\n  # yaml-language-server: $schema=portcullis.schema.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(config.Schema())
			return err
		},
	}
}
