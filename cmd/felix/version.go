package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/internal/version"
)

func newVersion() *cobra.Command {
	format := formatTable
	c := &cobra.Command{
		Use: "version", Short: "Print the version", Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if format != formatTable {
				return printJSON(c.OutOrStdout(), format, version.Get())
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "felix %v\n", version.Get())
			return asOutput(err)
		},
	}
	format.bind(c)
	return c
}
