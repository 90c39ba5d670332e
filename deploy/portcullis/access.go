package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// printSecret writes a secret alone on stdout, so that it can be captured, and
// what there is to know about it on stderr.
func (c *cli) printSecret(cmd *cobra.Command, secret, about string) error {
	fmt.Fprintln(cmd.ErrOrStderr(), about)
	_, err := fmt.Fprintln(cmd.OutOrStdout(), secret)
	return err
}

func (c *cli) key() *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Create, list and revoke API keys"}
	var workspace, name, application string
	var scopes []string
	var ttl time.Duration
	var flags waitFlags
	create := &cobra.Command{
		Use: "create --application NAME", Short: "Create an API key; it is printed this once", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd, flags.timeout, func(ctx context.Context, client adminv1.AdminServiceClient) error {
				req := &adminv1.CreateKeyRequest{Workspace: workspace, Name: name, Application: application, Scopes: scopes, WaitFor: flags.wait()}
				if cmd.Flags().Changed("ttl") {
					req.Ttl = durationpb.New(ttl)
				}
				resp, err := client.CreateKey(ctx, req)
				if err != nil {
					return located(err, nil)
				}
				err = c.printSecret(cmd, resp.Key, fmt.Sprintf("key %s created; it is shown only now", resp.Name))
				return errors.Join(err, convergence(cmd.ErrOrStderr(), resp.Version, resp.Convergence))
			})
		},
	}
	create.Flags().StringVar(&application, "application", "", "Application that the key belongs to (required)")
	create.Flags().StringVar(&name, "name", "", "name of the key (default: made up)")
	create.Flags().StringSliceVar(&scopes, "scope", nil, "narrow to these of the application's scopes")
	create.Flags().DurationVar(&ttl, "ttl", 0, "expire after this long (default: never)")
	flags.add(create)
	_ = create.MarkFlagRequired("application")
	revoke := &cobra.Command{
		Use: "revoke NAME", Short: "End an API key everywhere, now", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, 0, func(ctx context.Context, client adminv1.AdminServiceClient) error {
				resp, err := client.RevokeKey(ctx, &adminv1.RevokeKeyRequest{Workspace: workspace, Name: args[0]})
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "key %s revoked at revision %s\n", args[0], versionText(resp.Version))
				return nil
			})
		},
	}
	list := &cobra.Command{
		Use: "list", Short: "List API keys, without their secrets", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd, 0, func(ctx context.Context, client adminv1.AdminServiceClient) error {
				resources, err := listAll(ctx, client, "Credential", workspace)
				if err != nil || c.output != "table" {
					return errors.Join(err, c.printResources(cmd, resources, false))
				}
				return c.print(cmd, nil, func(w io.Writer) error {
					row(w, "NAME", "APPLICATION", "KEY", "SCOPES", "EXPIRES")
					for _, r := range resources {
						spec, expires := r.GetCredential(), "never"
						if spec.ExpiresAt != nil {
							expires = spec.ExpiresAt.AsTime().Local().Format("2006-01-02 15:04:05")
						}
						row(w, r.Metadata.Name, spec.Application, spec.GetApiKey().GetHint()+"...", strings.Join(spec.Scopes, " "), expires)
					}
					return nil
				})
			})
		},
	}
	cmd.PersistentFlags().StringVarP(&workspace, "workspace", "w", config.DefaultWorkspace, "workspace")
	cmd.AddCommand(create, revoke, list)
	return cmd
}

func (c *cli) token() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Mint, inspect and revoke tokens"}
	var issuer, sub, client string
	var scopes, audiences, claims []string
	var ttl time.Duration
	mint := &cobra.Command{
		Use: "mint", Short: "Sign a token with a built-in issuer; it alone is printed", Args: cobra.NoArgs,
		Example: "  portcullis token mint --sub alice --scope orders:read --aud https://api.shop.example --ttl 10m --claim tenant=acme",
		RunE: func(cmd *cobra.Command, _ []string) error {
			extra, err := claimsOf(claims)
			if err != nil {
				return err
			}
			return c.call(cmd, 0, func(ctx context.Context, admin adminv1.AdminServiceClient) error {
				resp, err := admin.MintToken(ctx, &adminv1.MintTokenRequest{
					Issuer: issuer, Subject: sub, Client: client, Scopes: scopes, Audiences: audiences, Ttl: durationpb.New(ttl), Claims: extra,
				})
				if err != nil {
					return err
				}
				return c.printSecret(cmd, resp.Token, fmt.Sprintf("token %s expires at %s", resp.Jti, resp.ExpiresAt.AsTime().Local().Format(time.RFC3339)))
			})
		},
	}
	mint.Flags().StringVar(&issuer, "issuer", "local", "built-in issuer")
	mint.Flags().StringVar(&sub, "sub", "", "subject")
	mint.Flags().StringVar(&client, "client", "", "client_id")
	mint.Flags().StringSliceVar(&scopes, "scope", nil, "scope; may be repeated")
	mint.Flags().StringSliceVar(&audiences, "aud", nil, "audience; may be repeated")
	mint.Flags().StringArrayVar(&claims, "claim", nil, "further claim, k=v; v is JSON, or else a string")
	mint.Flags().DurationVar(&ttl, "ttl", time.Hour, "lifetime")
	inspect := &cobra.Command{
		Use: "inspect [TOKEN]", Short: "Show what a token says, without verifying it (reads standard input by default)", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := argOrStdin(cmd, args)
			if err != nil {
				return err
			}
			header, payload, err := decodeToken(token)
			if err != nil {
				return err
			}
			data, err := json.Marshal(map[string]json.RawMessage{"header": header, "claims": payload})
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "not verified: this says what the token claims, not whether it is true")
			return c.printJSON(cmd, data)
		},
	}
	revoke := &cobra.Command{
		Use: "revoke [TOKEN]", Short: "Revoke one token by its jti (reads standard input by default)", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := argOrStdin(cmd, args)
			if err != nil {
				return err
			}
			_, payload, err := decodeToken(token)
			if err != nil {
				return err
			}
			var named struct{ Jti, Iss string }
			if err := json.Unmarshal(payload, &named); err != nil || named.Jti == "" {
				return errors.New("the token has no jti: revoke its subject, client or session instead")
			}
			return c.revokeCall(cmd, &adminv1.RevokeRequest{Jti: named.Jti, Issuer: named.Iss})
		},
	}
	cmd.AddCommand(mint, inspect, revoke)
	return cmd
}

// claimsOf reads k=v pairs; a value that is JSON is taken as such.
func claimsOf(pairs []string) (*structpb.Struct, error) {
	fields := map[string]any{}
	for _, pair := range pairs {
		name, text, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--claim %q: expected k=v", pair)
		}
		var value any
		if err := json.Unmarshal([]byte(text), &value); err != nil {
			value = text
		}
		fields[name] = value
	}
	return structpb.NewStruct(fields)
}

func argOrStdin(cmd *cobra.Command, args []string) (string, error) {
	if len(args) == 1 && args[0] != "-" {
		return args[0], nil
	}
	data, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 64<<10))
	return strings.TrimSpace(string(data)), err
}

func (c *cli) revoke() *cobra.Command {
	req := &adminv1.RevokeRequest{}
	var before string
	cmd := &cobra.Command{
		Use: "revoke {--subject|--client|--issuer|--session|--jti} VALUE", Short: "Deny tokens everywhere, now, whatever their expiry", Args: cobra.NoArgs,
		Long: `Deny tokens everywhere, now, whatever their expiry.

All tokens issued until now to the subject, client or session, or by the issuer,
are denied; those issued later are not. --issuer beside another flag narrows it.
A revocation cannot be taken back, not even by a rollback.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if before != "" {
				at, err := time.Parse(time.RFC3339, before)
				if err != nil {
					return fmt.Errorf("--before %q: expected a time like %s", before, time.Now().UTC().Format(time.RFC3339))
				}
				req.Before = timestamppb.New(at)
			}
			return c.revokeCall(cmd, req)
		},
	}
	cmd.Flags().StringVar(&req.Subject, "subject", "", "sub of the tokens")
	cmd.Flags().StringVar(&req.Client, "client", "", "client_id of the tokens")
	cmd.Flags().StringVar(&req.Issuer, "issuer", "", "issuer, by name, workspace/name or iss")
	cmd.Flags().StringVar(&req.Session, "session", "", "sid of the tokens")
	cmd.Flags().StringVar(&req.Jti, "jti", "", "one token")
	cmd.Flags().StringVar(&before, "before", "", "only tokens issued at or before this time (RFC 3339; default: now)")
	cmd.Flags().StringVarP(&req.Reason, "reason", "m", "", "why; kept in the history")
	return cmd
}

func (c *cli) revokeCall(cmd *cobra.Command, req *adminv1.RevokeRequest) error {
	return c.call(cmd, 0, func(ctx context.Context, client adminv1.AdminServiceClient) error {
		resp, err := client.Revoke(ctx, req)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "revoked at revision %s; kept until %s\n", versionText(resp.Version), resp.ExpiresAt.AsTime().Local().Format(time.RFC3339))
		return nil
	})
}

func (c *cli) operator() *cobra.Command {
	cmd := &cobra.Command{Use: "operator", Short: "Manage who may use the admin API"}
	var role string
	var workspaces []string
	create := &cobra.Command{
		Use: "create NAME --role ROLE", Short: "Create an operator; its credential is printed this once", Args: cobra.ExactArgs(1),
		Long: "Create an operator. Roles: viewer (reads), editor (reads and writes config), security (reads, revokes,\nmanages keys and tokens), admin (everything).",
		RunE: func(cmd *cobra.Command, args []string) error {
			value, ok := adminv1.Role_value["ROLE_"+strings.ToUpper(role)]
			if !ok || value == 0 {
				return fmt.Errorf("--role %q: expected viewer, editor, security or admin", role)
			}
			return c.call(cmd, 0, func(ctx context.Context, client adminv1.AdminServiceClient) error {
				resp, err := client.CreateOperator(ctx, &adminv1.CreateOperatorRequest{
					Operator: &adminv1.Operator{Name: args[0], Role: adminv1.Role(value), Workspaces: workspaces},
				})
				if err != nil {
					return err
				}
				return c.printSecret(cmd, resp.Credential, "operator "+args[0]+" created; the credential is shown only now")
			})
		},
	}
	create.Flags().StringVar(&role, "role", "", "viewer, editor, security or admin (required)")
	create.Flags().StringSliceVar(&workspaces, "workspace", nil, "bind to this workspace; may be repeated (default: all)")
	_ = create.MarkFlagRequired("role")
	_ = create.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"viewer", "editor", "security", "admin"}, cobra.ShellCompDirectiveNoFileComp))
	list := &cobra.Command{
		Use: "list", Short: "List operators", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd, 0, func(ctx context.Context, client adminv1.AdminServiceClient) error {
				resp, err := client.ListOperators(ctx, &adminv1.ListOperatorsRequest{})
				if err != nil {
					return err
				}
				return c.print(cmd, resp, func(w io.Writer) error {
					row(w, "NAME", "ROLE", "WORKSPACES", "CREATED")
					for _, o := range resp.Operators {
						scope := strings.Join(o.Workspaces, ", ")
						if scope == "" {
							scope = "(all)"
						}
						row(w, o.Name, strings.ToLower(strings.TrimPrefix(o.Role.String(), "ROLE_")), scope, o.CreatedAt.AsTime().Local().Format("2006-01-02 15:04:05"))
					}
					return nil
				})
			})
		},
	}
	remove := &cobra.Command{
		Use: "delete NAME", Short: "Delete an operator; its credential is dead at once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, 0, func(ctx context.Context, client adminv1.AdminServiceClient) error {
				_, err := client.DeleteOperator(ctx, &adminv1.DeleteOperatorRequest{Name: args[0]})
				return err
			})
		},
	}
	cmd.AddCommand(create, list, remove)
	return cmd
}

func (c *cli) joinToken() *cobra.Command {
	cmd := &cobra.Command{Use: "join-token", Short: "Let nodes into the cluster"}
	var ttl time.Duration
	create := &cobra.Command{
		Use: "create", Short: "Create a one-time token with which one node joins; it alone is printed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd, 0, func(ctx context.Context, client adminv1.AdminServiceClient) error {
				resp, err := client.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{Ttl: durationpb.New(ttl)})
				if err != nil {
					return err
				}
				return c.printSecret(cmd, resp.Token, "usable once, until "+resp.ExpiresAt.AsTime().Local().Format(time.RFC3339))
			})
		},
	}
	create.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long it may wait to be used")
	cmd.AddCommand(create)
	return cmd
}
