package main

import "github.com/spf13/cobra"

func (c *cli) controlplane() *cobra.Command { return &cobra.Command{Use: "controlplane"} }
func (c *cli) dataplane() *cobra.Command    { return &cobra.Command{Use: "dataplane"} }
