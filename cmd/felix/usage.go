package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/internal/settings"
)

// Wrong command lines are described in this file, in words of this program.

// group makes a command that has subcommands only.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use + " COMMAND", Short: short, Args: noCommand, DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, _ []string) error {
			names := make([]string, len(children)) // in this order, which help does not keep
			for i, child := range children {
				names[i] = child.Name()
			}
			return usagef("%s needs one of: %s", c.CommandPath(), strings.Join(names, ", "))
		},
	}
	c.AddCommand(children...)
	return c
}

// setUsage shows one line of usage for commands that have subcommands only, where cobra shows a second one with
// "[command]". They are those whose line has no flags: see [group].
func setUsage(root *cobra.Command) {
	root.DisableFlagsInUseLine = true
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(),
		"{{if .HasAvailableSubCommands}}\n  {{.CommandPath}} [command]",
		"{{if and .HasAvailableSubCommands (not .DisableFlagsInUseLine)}}\n  {{.CommandPath}} [command]", 1))
}

// commandNames are those that a command offers.
func commandNames(c *cobra.Command) (names []string) {
	for _, child := range c.Commands() {
		if child.IsAvailableCommand() {
			names = append(names, child.Name())
		}
	}
	return names
}

// synonyms are words of other programs for commands of this one.
var synonyms = map[string]string{
	"publish": "pub", "produce": "pub", "send": "pub",
	"subscribe": "sub", "consume": "sub", "tail": "sub",
	"get": "cache get", "mget": "cache get", "put": "cache put", "set": "cache put", "del": "cache del", "delete": "cache del", "rm": "cache del", "watch": "cache watch",
	"server": "dev", "serve": "dev", "start": "dev", "broker": "dev", "run": "dev",
	"stats": "top", "status": "top", "monitor": "top",
	"contexts": "context", "tokens": "token", "mint": "token mint", "inspect": "token inspect", "cert": "dev cert", "validate": "config validate",
}

// noCommand refuses the arguments of a command that has subcommands, since they are not among these.
func noCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := usageError{error: fmt.Errorf("unknown command %q of %s", args[0], c.CommandPath())}
	likely := synonyms[args[0]]
	if c.HasParent() {
		likely = strings.TrimPrefix(likely, c.Name()+" ")
	}
	if found, rest, findErr := c.Find(strings.Fields(likely)); likely == "" || findErr != nil || len(rest) > 0 || found == c {
		likely = settings.NearestWord(args[0], commandNames(c))
	}
	if likely != "" {
		err.hint = fmt.Sprintf("did you mean %s %s? See also %s --help", c.CommandPath(), likely, c.CommandPath())
	}
	return err
}

// arguments checks the number of arguments, which the usage line of the command names. -1 is any number.
func arguments(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		_, names, _ := strings.Cut(c.Use, " ")
		names, _, _ = strings.Cut(names, "--")
		names = strings.TrimSpace(names)
		switch {
		case most == 0 && c.HasSubCommands():
			return noCommand(c, args)
		case len(args) < least:
			return usagef("%s needs %s", c.CommandPath(), names)
		case most == 0 && len(args) > 0:
			return usagef("%s takes no argument, and there is %q", c.CommandPath(), args[0])
		case most >= 0 && len(args) > most:
			return usagef("%s takes %s, and there is %q as well", c.CommandPath(), names, args[most])
		}
		return nil
	}
}

// flagError says what is wrong with a flag.
func flagError(c *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			return usagef("unknown flag: -%s", unknown.GetSpecifiedName())
		}
		u := usageError{error: fmt.Errorf("unknown flag: --%s", unknown.GetSpecifiedName())}
		if likely := settings.NearestWord(unknown.GetSpecifiedName(), flagNames(c)); likely != "" {
			u.hint = fmt.Sprintf("did you mean --%s? See also %s --help", likely, c.CommandPath())
		}
		return u
	}
	if missing, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		name, _ := pflag.UnquoteUsage(missing.GetFlag())
		return usagef("--%s needs a value: %s", missing.GetFlag().Name, name)
	}
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return usagef("--%s %q: %s", invalid.GetFlag().Name, invalid.GetValue(), wanted(invalid))
	}
	if syntax, ok := errors.AsType[*pflag.InvalidSyntaxError](err); ok {
		return usagef("%q is not a flag", syntax.GetSpecifiedFlag())
	}
	return usageError{error: err}
}

// wanted says what a flag's value has to be.
func wanted(e *pflag.InvalidValueError) string {
	switch e.GetFlag().Value.Type() {
	case "int", "int64":
		return "want a whole number"
	case "uint64":
		return "want a whole number that is at least 0"
	case "float64":
		return "want a number"
	case "bool":
		return "want true or false"
	case "duration":
		return "want a time with its unit, such as 500ms, 10s or 2h"
	default:
		return e.Unwrap().Error()
	}
}

func flagNames(c *cobra.Command) (names []string) {
	c.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) }) // those of the parents are among them
	return names
}

// exclusive refuses flags that are given together although one excludes the other.
func exclusive(c *cobra.Command, names ...string) error {
	given := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !c.Flags().Changed(name) })
	if len(given) > 1 {
		return usagef("--%s and --%s exclude each other", given[0], given[1])
	}
	return nil
}

// newHelp makes the command help, which fails for a command that is not there.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Show the help of a command", DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, args []string) error {
			of, rest, err := c.Root().Find(args)
			if err == nil && len(rest) > 0 {
				err = noCommand(of, rest)
			}
			if err != nil {
				return err
			}
			of.InitDefaultHelpFlag() // so that it is among the flags
			return of.Help()
		},
	}
}
