package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/secret"
)

// contextFile is where a cluster is and who speaks to it. The file holds a
// secret and has mode 0600.
type contextFile struct {
	// Address of the admin listener, host:port.
	Address string `yaml:"address"`
	// CA is the PEM of the authorities that the admin listener's certificate must
	// come from.
	CA         string `yaml:"ca"`
	Credential string `yaml:"credential"`
}

// writeContext writes the file with mode 0600, replacing it whole.
func writeContext(path string, c contextFile) error {
	data, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	return secret.WriteFile(path, data, 0o600)
}

// defaultContext is where `portcullis context use` puts a context.
func defaultContext() string {
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "portcullis", "context.yaml")
}

func (c *cli) contextPath() (string, error) {
	for _, path := range []string{c.contextFile, os.Getenv("PORTCULLIS_CONTEXT")} {
		if path != "" {
			return path, nil
		}
	}
	if path := defaultContext(); path != "" {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New(usageNoContext)
}

func (c *cli) readContext() (contextFile, error) {
	path, err := c.contextPath()
	if err != nil {
		return contextFile{}, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return contextFile{}, fmt.Errorf("reading the context: %w", err)
	}
	var file contextFile
	if err := yaml.Load(data, &file, yaml.WithKnownFields()); err != nil {
		return contextFile{}, fmt.Errorf("%s is not a context file: expected address, ca and credential, as 'portcullis context create' writes them", path)
	}
	if file.Address == "" || file.Credential == "" {
		return contextFile{}, fmt.Errorf("%s is not a context file: it lacks address or credential", path)
	}
	return file, nil
}

func (c *cli) contextCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "context", Short: "Manage which cluster this command line talks to"}
	show := &cobra.Command{
		Use: "show", Short: "Show the context in use, without its credential", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := c.contextPath()
			if err != nil {
				return err
			}
			file, err := c.readContext()
			if err != nil {
				return err
			}
			if c.output != "table" {
				return c.printValue(cmd, map[string]any{"file": path, "address": file.Address})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "file:       %s\naddress:    %s\ncredential: (secret)\n", path, file.Address)
			return err
		},
	}
	use := &cobra.Command{
		Use: "use FILE", Short: "Make a context file the default of this user", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.contextFile = args[0]
			file, err := c.readContext()
			if err != nil {
				return err
			}
			return c.installContext(cmd, defaultContext(), file)
		},
	}
	var address, caFile, out string
	create := &cobra.Command{
		Use: "create --address HOST:PORT --ca FILE", Short: "Write a context file; the operator credential is read from standard input", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := os.ReadFile(caFile)
			if err != nil {
				return err
			}
			credential, err := argOrStdin(cmd, nil)
			if err != nil {
				return err
			}
			if _, err := identity.ParseOperatorCredential(credential); err != nil {
				return err
			}
			return c.installContext(cmd, out, contextFile{Address: address, CA: string(ca), Credential: credential})
		},
	}
	create.Flags().StringVar(&address, "address", "", "admin listener, host:port (required)")
	create.Flags().StringVar(&caFile, "ca", "", "PEM file of the cluster's CA (required)")
	create.Flags().StringVar(&out, "out", defaultContext(), "where to write")
	_ = create.MarkFlagRequired("address")
	_ = create.MarkFlagRequired("ca")
	cmd.AddCommand(show, use, create)
	return cmd
}

func (c *cli) installContext(cmd *cobra.Command, path string, file contextFile) error {
	if path == "" {
		return errors.New("no place for a default context: set HOME, or name a file with --out")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := writeContext(path, file); err != nil {
		return err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "wrote", path)
	return nil
}
