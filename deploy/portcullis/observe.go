package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func (c *cli) fetchStatus(ctx context.Context) (*adminv1.StatusResponse, error) {
	client, closeClient, err := c.dial()
	if err != nil {
		return nil, err
	}
	defer closeClient()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return client.Status(ctx, &adminv1.StatusRequest{})
}

func (c *cli) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the cluster: revision, nodes, issuers and their keys, certificates", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := c.fetchStatus(cmd.Context())
			if err != nil {
				return err
			}
			if c.output != "table" {
				return c.printStatus(cmd, resp)
			}
			return c.print(cmd, resp, func(w io.Writer) error {
				row(w, "version", resp.Version)
				row(w, "revision", versionText(resp.Revision))
				row(w, "control planes", len(resp.Replicas))
				row(w, "API keys", resp.Credentials)
				row(w, "revocations", resp.Revocations)
				fmt.Fprintln(w)
				printNodes(w, resp.Nodes, resp.Revision)
				printConditions(w, resp.Nodes, time.Now())
				fmt.Fprintln(w)
				row(w, "ISSUER", "ISS", "KEYS", "FETCHED", "PROBLEM")
				for _, issuer := range resp.Issuers {
					fetched := "-"
					if issuer.FetchedAt != nil {
						fetched = ago(issuer.FetchedAt.AsTime(), time.Now())
					}
					row(w, issuer.Workspace+"/"+issuer.Name, issuer.Issuer, issuer.Keys, fetched, issuer.Problem)
				}
				printCertificates(w, resp.Certificates, time.Now())
				return nil
			})
		},
	}
}

// printCertificates shows those that are obtained by ACME, when there are any.
func printCertificates(w io.Writer, certificates []*adminv1.CertificateStatus, now time.Time) {
	if len(certificates) == 0 {
		return
	}
	fmt.Fprintln(w)
	row(w, "CERTIFICATE", "HOSTNAMES", "EXPIRES", "NEXT ORDER", "PROBLEM")
	ahead := func(at *timestamppb.Timestamp) string {
		switch {
		case at == nil:
			return "-"
		case at.AsTime().Before(now):
			return ago(at.AsTime(), now)
		}
		return "in " + at.AsTime().Sub(now).Round(time.Second).String()
	}
	for _, one := range certificates {
		next := ahead(one.RefreshAt)
		switch {
		case one.Ordering:
			next = "now"
		case one.GetSuggested().GetExplanationUrl() != "":
			next += ", see " + one.Suggested.ExplanationUrl
		}
		row(w, one.Workspace+"/"+one.Name, strings.Join(one.Hostnames, ","), ahead(one.ExpiresAt), next, one.Problem)
	}
}

func (c *cli) nodes() *cobra.Command {
	remove := &cobra.Command{
		Use: "remove NAME", Short: "Take a node out of the cluster, so that it must join anew", Args: cobra.ExactArgs(1),
		Long: "Take a node out of the cluster: no control plane serves it any more and its certificate is not\nrenewed. Stop it as well: until then it serves what it last had.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, 0, func(ctx context.Context, client adminv1.AdminServiceClient) error {
				if _, err := client.RemoveNode(ctx, &adminv1.RemoveNodeRequest{Name: args[0]}); err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "node %s removed\n", args[0])
				return nil
			})
		},
	}
	cmd := &cobra.Command{
		Use: "nodes", Short: "List the nodes, what each runs and what it rejected; remove one", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := c.fetchStatus(cmd.Context())
			if err != nil {
				return err
			}
			if c.output != "table" {
				return c.printStatus(cmd, &adminv1.StatusResponse{Version: resp.Version, Revision: resp.Revision, Nodes: resp.Nodes})
			}
			return c.print(cmd, resp, func(w io.Writer) error {
				printNodes(w, resp.Nodes, resp.Revision)
				printConditions(w, resp.Nodes, time.Now())
				return nil
			})
		},
	}
	cmd.AddCommand(remove)
	return cmd
}

func printNodes(w io.Writer, nodes []*controlv1.NodeStatus, newest *controlv1.Version) {
	row(w, "NODE", "ADDRESS", "RUNS", "STATE", "REPLICA", "SINCE", "PROBLEM")
	for _, node := range nodes {
		state, problem := "current", ""
		switch {
		case !node.Connected:
			state = "disconnected"
		case node.Rejected != nil:
			state = "rejected " + versionText(node.Rejected)
			if len(node.Problems) > 0 {
				problem = config.ProblemOf(node.Problems[0]).Error()
			}
		case config.VersionOf(node.Version).Compare(config.VersionOf(newest)) < 0:
			state = "behind"
		}
		row(w, node.Name, node.Address, versionText(node.Version), state, node.Replica, ago(node.ConnectedAt.AsTime(), time.Now()), problem)
	}
}

func (c *cli) wait() *cobra.Command {
	var timeout time.Duration
	var revision int64
	cmd := &cobra.Command{
		Use: "wait", Short: "Wait until every node runs a revision; exit code 5 when not in time", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, closeClient, err := c.dial()
			if err != nil {
				return err
			}
			defer closeClient()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout+timeout)
			defer cancel()
			stop := progress(cmd, "waiting for the nodes")
			resp, err := client.Wait(ctx, &adminv1.WaitRequest{Revision: revision, Timeout: durationpb.New(timeout)})
			stop()
			if err != nil {
				return err
			}
			done := resp.Convergence
			fmt.Fprintf(cmd.ErrOrStderr(), "%d/%d nodes run revision %s\n", done.GetProgrammed(), done.GetTotal(), versionText(resp.Version))
			if done.GetConverged() {
				return nil
			}
			return behind(fmt.Sprintf("not in time: %d of %d nodes do not run revision %s:", len(done.GetBehind()), done.GetTotal(), versionText(resp.Version)), done)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait")
	cmd.Flags().Int64Var(&revision, "revision", 0, "revision to wait for (default: the newest)")
	return cmd
}

func (c *cli) why() *cobra.Command {
	return &cobra.Command{
		Use: "why REQUEST_ID", Short: "Explain how a node decided a request", Args: cobra.ExactArgs(1),
		Long: `Explain how a node decided a request.

The request id is the X-Request-Id header of the answer and request_id of a
refusal's body. Each node remembers its newest decisions, allowed and denied.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, closeClient, err := c.dial()
			if err != nil {
				return err
			}
			defer closeClient()
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			resp, err := client.Why(ctx, &adminv1.WhyRequest{RequestId: args[0]})
			if err != nil {
				return err
			}
			return c.print(cmd, resp, func(w io.Writer) error { return printDecision(cmd, w, resp.Record) })
		},
	}
}

func printDecision(cmd *cobra.Command, w io.Writer, d *controlv1.DecisionRecord) error {
	outcome := colour(cmd, "32", "allowed")
	if d.Reason != "" {
		outcome = colour(cmd, "31", "denied: "+d.Reason)
	}
	show := func(name, value string) {
		if value != "" {
			row(w, name, value)
		}
	}
	show("decision", outcome)
	show("status", fmt.Sprint(d.Status))
	show("detail", d.Detail)
	show("policy", d.Policy)
	show("rule", d.Rule)
	show("request", d.Method+" "+d.Host+d.Path)
	if d.Route != "" {
		show("route", d.Workspace+"/"+d.Route)
	}
	show("revision", versionText(d.Version))
	show("node", d.Node)
	show("caller", d.Subject)
	show("client", d.Client)
	show("issuer", d.Issuer)
	show("authenticated by", d.AuthMethod)
	show("peer", d.Peer)
	show("upstream", d.Upstream)
	show("trace", d.TraceId)
	show("time", d.Time.AsTime().Local().Format(time.RFC3339Nano))
	show("took", d.Duration.AsDuration().String())
	return nil
}

// printStatus writes the status as JSON or YAML with revisions as plain numbers,
// so that scripts compare them without knowing about epochs.
func (c *cli) printStatus(cmd *cobra.Command, resp *adminv1.StatusResponse) error {
	type problem = map[string]any
	nodes := []map[string]any{}
	for _, node := range resp.Nodes {
		one := map[string]any{
			"name": node.Name, "address": node.Address, "version": node.Release, "revision": node.GetVersion().GetRevision(),
			"connected": node.Connected, "replica": node.Replica, "connectedAt": node.ConnectedAt.AsTime(), "reportedAt": node.ReportedAt.AsTime(),
		}
		if node.Rejected != nil {
			problems := []problem{}
			for _, p := range node.Problems {
				problems = append(problems, problem{"resource": p.Resource, "path": p.Path, "reason": p.Reason})
			}
			one["rejected"] = map[string]any{"revision": node.Rejected.Revision, "problems": problems}
		}
		if node.Condition != nil {
			one["condition"] = conditionJSON(node.Condition)
		}
		nodes = append(nodes, one)
	}
	issuers := []map[string]any{}
	for _, issuer := range resp.Issuers {
		one := map[string]any{"workspace": issuer.Workspace, "name": issuer.Name, "issuer": issuer.Issuer, "keys": issuer.Keys, "problem": issuer.Problem}
		if issuer.FetchedAt != nil {
			one["fetchedAt"], one["staleAt"] = issuer.FetchedAt.AsTime(), issuer.StaleAt.AsTime()
		}
		issuers = append(issuers, one)
	}
	certificates := []map[string]any{}
	for _, certificate := range resp.Certificates {
		one := map[string]any{
			"workspace": certificate.Workspace, "name": certificate.Name, "hostnames": certificate.Hostnames,
			"problem": certificate.Problem, "failures": certificate.Failures, "ordering": certificate.Ordering,
		}
		for name, at := range map[string]*timestamppb.Timestamp{"issuedAt": certificate.IssuedAt, "expiresAt": certificate.ExpiresAt, "refreshAt": certificate.RefreshAt} {
			if at != nil {
				one[name] = at.AsTime()
			}
		}
		if window := certificate.Suggested; window != nil {
			one["suggested"] = map[string]any{"start": window.Start.AsTime(), "end": window.End.AsTime(), "explanationUrl": window.ExplanationUrl}
		}
		certificates = append(certificates, one)
	}
	data, err := json.Marshal(map[string]any{
		"version": resp.Version, "epoch": resp.GetRevision().GetEpoch(), "revision": resp.GetRevision().GetRevision(), "nodes": nodes,
		"issuers": issuers, "certificates": certificates, "replicas": resp.Replicas, "credentials": resp.Credentials, "revocations": resp.Revocations,
	})
	if err != nil {
		return err
	}
	return c.printJSON(cmd, data)
}
