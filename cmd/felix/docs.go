package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newDocs makes docs/use/cli.md, and the pages and completions that go into packages.
func newDocs() *cobra.Command {
	var file, dir string
	c := &cobra.Command{
		Use: "docs", Short: "Write the reference pages of this program", Hidden: true, Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			var errs []error
			if file != "" {
				errs = append(errs, os.WriteFile(file, page(c.Root()), 0o644))
			}
			if dir != "" {
				errs = append(errs, writePackaged(c.Root(), dir))
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().StringVar(&file, "page", "", "`file` for one page with all commands, in Markdown")
	c.Flags().StringVar(&dir, "package", "", "`directory` for manual pages and the completions of shells")
	return c
}

// writePackaged writes to a directory what packages install with the program: man/*.1.gz, felix.bash, felix.fish and
// _felix, for zsh.
func writePackaged(root *cobra.Command, dir string) error {
	man := filepath.Join(dir, "man")
	err := os.RemoveAll(man) // with the pages of commands that are gone
	if err == nil {
		err = os.MkdirAll(man, 0o755)
	}
	if err != nil {
		return err
	}
	errs := []error{
		root.GenBashCompletionFileV2(filepath.Join(dir, "felix.bash"), true),
		root.GenFishCompletionFile(filepath.Join(dir, "felix.fish"), true),
		root.GenZshCompletionFile(filepath.Join(dir, "_felix")),
	}
	walk(root, func(c *cobra.Command) {
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1.gz"
		var b bytes.Buffer
		w, err := gzip.NewWriterLevel(&b, gzip.BestCompression) // with no time in it, so that it is always the same
		if err == nil {
			_, err = w.Write(manual(c))
		}
		if err == nil {
			err = w.Close()
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(man, name), b.Bytes(), 0o644)
		}
		errs = append(errs, err)
	})
	return errors.Join(errs...)
}

// walk calls visit with c and all its commands that have a page.
func walk(c *cobra.Command, visit func(*cobra.Command)) {
	if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
		return
	}
	visit(c)
	for _, child := range c.Commands() {
		walk(child, visit)
	}
}

// description is what a command does, at length if it says so.
func description(c *cobra.Command) string {
	if c.Long == "" {
		return c.Short + "."
	}
	return c.Long
}

// ownFlags are the flags of a command that are not those of its parents.
func ownFlags(c *cobra.Command) []*pflag.FlagSet {
	return []*pflag.FlagSet{c.LocalNonPersistentFlags(), c.PersistentFlags()}
}

// page is one page for all commands, where cobra's own generator makes one for each.
func page(root *cobra.Command) []byte {
	var b bytes.Buffer
	b.WriteString("# The command line\n\n<!-- Generated from cmd/felix by go generate ./cmd/felix. Do not edit. -->\n\n")
	walk(root, func(c *cobra.Command) {
		if c.HasParent() {
			fmt.Fprintf(&b, "## %s\n\n", c.CommandPath())
		}
		fmt.Fprintf(&b, "```text\n%s\n\nUsage: %s\n", description(c), c.UseLine())
		if c.HasExample() {
			fmt.Fprintf(&b, "\n%s\n", c.Example)
		}
		for _, own := range ownFlags(c) {
			if c.HasParent() && own.HasAvailableFlags() {
				fmt.Fprintf(&b, "\n%s", own.FlagUsages())
			}
		}
		b.WriteString("```\n\n")
	})
	fmt.Fprintf(&b, "Flags of every command:\n\n```text\n%s```\n", root.PersistentFlags().FlagUsages())
	return b.Bytes()
}

// manual is the manual page of a command.
func manual(c *cobra.Command) []byte {
	var b bytes.Buffer
	name := strings.ReplaceAll(c.CommandPath(), " ", "-")
	fmt.Fprintf(&b, ".TH %s 1 \"\" Felix \"Felix Manual\"\n", roff(strings.ToUpper(name)))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(name), roff(c.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n%s\n", roff(c.UseLine()))
	verbatim := func(heading, text string) {
		if text != "" {
			fmt.Fprintf(&b, ".SH %s\n.nf\n%s\n.fi\n", heading, roff(strings.TrimRight(text, "\n")))
		}
	}
	verbatim("DESCRIPTION", description(c))
	var own strings.Builder
	for _, flags := range ownFlags(c) {
		own.WriteString(flags.FlagUsages())
	}
	verbatim("OPTIONS", own.String())
	if c.HasParent() {
		verbatim("OPTIONS OF EVERY COMMAND", c.Root().PersistentFlags().FlagUsages())
	}
	verbatim("EXAMPLES", c.Example)
	var others []string
	for _, child := range c.Commands() {
		walk(child, func(other *cobra.Command) {
			if other == child {
				others = append(others, ".BR "+roff(strings.ReplaceAll(other.CommandPath(), " ", "-"))+" (1)")
			}
		})
	}
	if c.HasParent() {
		others = append(others, ".BR "+roff(strings.ReplaceAll(c.Parent().CommandPath(), " ", "-"))+" (1)")
	}
	fmt.Fprintf(&b, ".SH SEE ALSO\n%s\n", strings.Join(others, ",\n"))
	return b.Bytes()
}

// roff escapes text for a manual page.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line // otherwise it is a request
		}
	}
	return strings.Join(lines, "\n")
}
