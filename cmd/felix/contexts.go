package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/felix-mq/felix/auth"
)

// contexts is the file of contexts: names for brokers, and one of them in use.
type contexts struct {
	Current  string                `yaml:"current,omitempty"`
	Contexts map[string]connection `yaml:"contexts"`

	path string
}

// contextsPath is where the file lies.
func contextsPath() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", usageError{fmt.Errorf("there is no place for contexts: %w", err), "HOME or XDG_CONFIG_HOME says where they are kept"}
	}
	return filepath.Join(dir, "felix", "contexts.yaml"), nil
}

// readContexts reads the file for a command that can do without: where there is no place for one, there are no
// contexts.
func readContexts() (*contexts, error) {
	if _, err := contextsPath(); err == nil {
		return loadContexts()
	}
	return &contexts{}, nil
}

// loadContexts reads the file. One that is not there holds nothing.
func loadContexts() (*contexts, error) {
	path, err := contextsPath()
	if err != nil {
		return nil, err
	}
	c := &contexts{path: path, Contexts: make(map[string]connection)}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading contexts: %w", err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(c); err != nil && !errors.Is(err, io.EOF) { // which says that the file is empty
		return nil, usageError{error: fmt.Errorf("%s: %w", path, err)}
	}
	if c.Contexts == nil {
		c.Contexts = make(map[string]connection)
	}
	return c, nil
}

// save replaces the file. Only its owner can read it, since it may hold tokens.
func (c *contexts) save() error {
	text, err := yaml.Marshal(c)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(c.path), 0o700)
	}
	if err == nil {
		err = writeFile(c.path, text)
	}
	if err != nil {
		return fmt.Errorf("saving contexts: %w", err)
	}
	return nil
}

// check reports whether the file could be saved.
func (c *contexts) check() error {
	f, err := os.CreateTemp(filepath.Dir(c.path), filepath.Base(c.path)+".*")
	if err != nil {
		return fmt.Errorf("saving contexts: %w", err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// remove takes a context out.
func (c *contexts) remove(name string) {
	delete(c.Contexts, name)
	if c.Current == name {
		c.Current = ""
	}
}

// writeFile puts content in the place of a file in one step. Only its owner can read it.
func writeFile(path string, content []byte) error { return replaceFile(path, content, 0o600) }

// writePublic does the same for a file that everybody may read.
func writePublic(path string, content []byte) error { return replaceFile(path, content, 0o644) }

func replaceFile(path string, content []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync() // a crash of the system leaves the old content or this
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// get returns a context by its name.
func (c *contexts) get(name string) (connection, error) {
	one, ok := c.Contexts[name]
	if !ok {
		return one, fmt.Errorf("context %q: %w in %s; see felix context ls", name, errNotFound, c.path)
	}
	return one, nil
}

func (a *app) newContext() *cobra.Command {
	return group("context", "Names for brokers, and the one in use", a.newContextAdd(), a.newContextUse(), newContextList(), a.newContextCurrent(), newContextRemove())
}

func (a *app) newContextAdd() *cobra.Command {
	var use bool
	c := &cobra.Command{
		Use:   "add NAME --addr HOST:PORT",
		Short: "Add a context, or replace it, with the connection flags as its content",
		Long: `Add a context, or replace it. The flags that lead to a broker are its content. The first context is the one in use.

A token given with --token is written into the file of contexts, which only its owner can read. With --token-file the
file is read again whenever a stream is opened, so that something else can renew the token.`,
		Example: "  felix context add prod --addr broker.example:5000 --tenant t1 --token-file ~/.felix-token --ca ca.pem",
		Args:    arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if a.flags.Addr == "" {
				return usageError{error: errors.New("a context needs --addr")}
			}
			if err := checkAddr(a.flags.Addr); err != nil {
				return usagef("--addr: %w", err)
			}
			if err := auth.ValidName(args[0]); err != nil {
				return usageError{error: err}
			}
			one := a.flags
			if err := one.makeAbsolute(); err != nil {
				return err
			}
			return changeContexts(func(all *contexts) error {
				all.Contexts[args[0]] = one
				if use || all.Current == "" {
					all.Current = args[0]
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&use, "use", false, "use it from now on")
	return c
}

// editContexts changes the file of contexts, in which the named one has to be.
func editContexts(name string, edit func(*contexts)) error {
	return changeContexts(func(all *contexts) error {
		if _, err := all.get(name); err != nil {
			return err
		}
		edit(all)
		return nil
	})
}

// changeContexts reads, changes and saves the file of contexts, while no other process does.
func changeContexts(change func(*contexts) error) error {
	path, err := contextsPath()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("saving contexts: %w", err)
	}
	var lock *os.File
	for until := time.Now().Add(lockTimeout); ; {
		if lock, err = lockFile(path + ".lock"); err != nil {
			return fmt.Errorf("saving contexts: %w", err)
		}
		if lock != nil {
			break
		}
		if time.Now().After(until) {
			return fmt.Errorf("saving contexts: another process has held %s.lock for %v", path, lockTimeout)
		}
		<-time.After(10 * time.Millisecond)
	}
	defer func() { _ = lock.Close() }()
	all, err := loadContexts()
	if err != nil {
		return err
	}
	if err := change(all); err != nil {
		return err
	}
	return all.save()
}

// lockTimeout bounds the wait for another process that changes contexts, which takes milliseconds.
const lockTimeout = 5 * time.Second

func (a *app) newContextUse() *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Use a context from now on", Args: arguments(1, 1), ValidArgsFunction: completeContext,
		RunE: func(_ *cobra.Command, args []string) error {
			return editContexts(args[0], func(all *contexts) { all.Current = args[0] })
		},
	}
}

func newContextList() *cobra.Command {
	format := formatTable
	c := &cobra.Command{
		Use: "ls", Short: "List the contexts", Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := readContexts()
			if err != nil {
				return err
			}
			type item struct {
				Name      string `json:"name"`
				Current   bool   `json:"current"`
				Addr      string `json:"addr"`
				Tenant    string `json:"tenant,omitempty"`
				Namespace string `json:"namespace,omitempty"`
			}
			items := make([]item, 0, len(all.Contexts))
			for _, name := range slices.Sorted(maps.Keys(all.Contexts)) {
				one := all.Contexts[name]
				items = append(items, item{name, name == all.Current, one.Addr, one.Tenant, one.Namespace})
			}
			return printList(c.OutOrStdout(), format, items, "\tNAME\tADDR\tTENANT\tNAMESPACE", func(i item) string {
				mark := ""
				if i.Current {
					mark = "*"
				}
				return fmt.Sprintf("%s\t%s\t%s\t%s\t%s", mark, i.Name, i.Addr, i.Tenant, i.Namespace)
			})
		},
	}
	format.bind(c)
	return c
}

func (a *app) newContextCurrent() *cobra.Command {
	return &cobra.Command{
		Use: "current", Short: "Print the name of the context in use", Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.resolve()
			if err != nil {
				return err
			}
			if r.context == "" {
				return fmt.Errorf("no context is in use: %w", errNotFound)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), r.context)
			return asOutput(err)
		},
	}
}

func newContextRemove() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "Remove a context", Args: arguments(1, 1), ValidArgsFunction: completeContext,
		RunE: func(_ *cobra.Command, args []string) error {
			return editContexts(args[0], func(all *contexts) { all.remove(args[0]) })
		},
	}
}

func completeContext(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	all, err := loadContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return slices.Sorted(maps.Keys(all.Contexts)), cobra.ShellCompDirectiveNoFileComp
}
