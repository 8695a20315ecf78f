package main

import (
	"bytes"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// newDocs makes docs/use/cli.md: one page for all commands, where cobra's own generator makes one for each.
func newDocs() *cobra.Command {
	return &cobra.Command{
		Use: "docs FILE", Short: "Write the reference page of this program", Hidden: true, Args: arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return os.WriteFile(args[0], page(c.Root()), 0o644)
		},
	}
}

func page(root *cobra.Command) []byte {
	var b bytes.Buffer
	b.WriteString("# The command line\n\n<!-- Generated from cmd/felix by go generate ./cmd/felix. Do not edit. -->\n\n")
	section(&b, root)
	fmt.Fprintf(&b, "Flags of every command:\n\n```text\n%s```\n", root.PersistentFlags().FlagUsages())
	return b.Bytes()
}

func section(b *bytes.Buffer, c *cobra.Command) {
	if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
		return
	}
	if c.HasParent() {
		fmt.Fprintf(b, "## %s\n\n", c.CommandPath())
	}
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	fmt.Fprintf(b, "```text\n%s\n\nUsage: %s\n", text, c.UseLine())
	if c.HasExample() {
		fmt.Fprintf(b, "\n%s\n", c.Example)
	}
	if own := c.LocalNonPersistentFlags(); c.HasParent() && own.HasAvailableFlags() {
		fmt.Fprintf(b, "\n%s", own.FlagUsages())
	}
	if own := c.PersistentFlags(); c.HasParent() && own.HasAvailableFlags() {
		fmt.Fprintf(b, "\n%s", own.FlagUsages())
	}
	b.WriteString("```\n\n")
	for _, child := range c.Commands() {
		section(b, child)
	}
}
