package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/client"
)

// defaultCache is the cache of a broker for development.
const defaultCache = "primary"

func (a *app) newCache() *cobra.Command {
	cache := defaultCache
	c := group("cache", "Get, put, delete and watch entries of a cache", a.newCacheGet(&cache), a.newCachePut(&cache), a.newCacheDelete(&cache), a.newCacheWatch(&cache))
	c.PersistentFlags().StringVar(&cache, "cache", cache, "name of the cache")
	return c
}

// entryJSON is a cache entry as JSON.
type entryJSON struct {
	Key     string `json:"key"`
	Found   bool   `json:"found"`
	Version uint64 `json:"version,omitempty"`
	payload
}

func (a *app) newCacheGet(cache *string) *cobra.Command {
	format := payloadFormat{formatRaw}
	c := &cobra.Command{
		Use:   "get KEY...",
		Short: "Print what is stored under keys",
		Long: `Print what is stored under keys. By default that is the value of each, as it is, with a newline behind it. Exit code 4 says
that one was missing.`,
		Args: arguments(1, -1),
		RunE: func(c *cobra.Command, keys []string) error {
			conn, r, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			results := conn.Cache(r.Namespace, *cache).GetMany(c.Context(), keys...)
			w := c.OutOrStdout()
			var errs []error
			entries := make([]entryJSON, len(keys))
			for i, result := range results {
				entries[i] = entryJSON{Key: keys[i], Found: result.Err == nil, Version: result.Version}
				switch {
				case result.Err == nil && format.format == formatRaw:
					_, err := w.Write(append(slices.Clip(result.Value), '\n'))
					errs = append(errs, err)
				case result.Err == nil:
					entries[i].payload = newPayload(result.Value)
				case errors.Is(result.Err, client.ErrMiss):
					errs = append(errs, fmt.Errorf("%q: %w", keys[i], client.ErrMiss))
				default:
					return result.Err
				}
			}
			if format.format != formatRaw {
				errs = append(errs, printList(w, format.format, entries, "KEY\tVERSION\tVALUE", func(e entryJSON) string {
					if !e.Found {
						return e.Key + "\t-\t-"
					}
					return fmt.Sprintf("%s\t%d\t%s", e.Key, e.Version, e.printable())
				}))
			}
			return errors.Join(errs...)
		},
	}
	format.bind(c, "the values alone")
	return c
}

func (a *app) newCachePut(cache *string) *cobra.Command {
	var ttl time.Duration
	var file string
	var absent bool
	var version uint64
	c := &cobra.Command{
		Use:   "put KEY [VALUE]",
		Short: "Store a value",
		Long: `Store a value under a key: the argument, the content of a file, or all of the standard input.

With --if-absent or --if-version nothing is replaced but what is meant (exit code 1 if there is something else).`,
		Example: `  felix cache put greeting hello --ttl 10m
  felix cache put avatar --file me.png`,
		Args: arguments(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := exclusive(c, "if-absent", "if-version"); err != nil {
				return err
			}
			if ttl < 0 {
				return usageError{error: errors.New("--ttl is at least 0")}
			}
			value, err := a.argumentFileOrInput(c, args[1:], file)
			if err != nil {
				return err
			}
			life := client.NoExpiry
			if ttl > 0 {
				life = ttl
			}
			conn, r, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			h := conn.Cache(r.Namespace, *cache)
			if !absent && version == 0 {
				return h.Put(c.Context(), args[0], value, life)
			}
			now, err := h.PutIf(c.Context(), args[0], value, life, version)
			if errors.Is(err, client.ErrVersion) {
				return fmt.Errorf("%q: %w: it is %d (0 for no entry)", args[0], client.ErrVersion, now)
			}
			return err
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 0, "lifetime; 0 for none")
	c.Flags().StringVarP(&file, "file", "f", "", "store the content of a `file`")
	c.Flags().BoolVar(&absent, "if-absent", false, "only if there is no entry")
	c.Flags().Uint64Var(&version, "if-version", 0, "only if the entry has this `version`, which felix cache get -o table shows")
	return c
}

// argumentFileOrInput returns the one of the three that is given.
func (a *app) argumentFileOrInput(c *cobra.Command, argument []string, file string) ([]byte, error) {
	switch {
	case len(argument) > 0 && file != "":
		return nil, usageError{error: errors.New("either an argument or --file, not both")}
	case len(argument) > 0:
		return []byte(argument[0]), nil
	case file != "":
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, usageError{error: err}
		}
		return content, nil
	}
	return readAll(c.Context(), c.InOrStdin(), maxLine, "the value", c.ErrOrStderr())
}

func (a *app) newCacheDelete(cache *string) *cobra.Command {
	return &cobra.Command{
		Use: "del KEY...", Short: "Delete entries", Args: arguments(1, -1),
		Long: "Delete entries. Exit code 4 says that one was not there.",
		RunE: func(c *cobra.Command, keys []string) error {
			conn, r, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			h := conn.Cache(r.Namespace, *cache)
			var missing []error
			for _, key := range keys {
				found, err := h.Delete(c.Context(), key)
				if err != nil {
					return err
				}
				if !found {
					missing = append(missing, fmt.Errorf("%q: %w", key, client.ErrMiss))
				}
			}
			return errors.Join(missing...)
		},
	}
}

// changeJSON is a change of a cache as JSON.
type changeJSON struct {
	Change  string `json:"change"`
	Key     string `json:"key,omitempty"`
	Version uint64 `json:"version,omitempty"`
}

func (a *app) newCacheWatch(cache *string) *cobra.Command {
	format := formatTable
	var count int
	c := &cobra.Command{
		Use:   "watch",
		Short: "Print the changes of a cache",
		Long: `Print the changes of a cache, each with its key and version, until an interrupt or --count: set, deleted, expired and evicted.
Values are not told. A "reset" says that anything may have changed: it comes first, and whenever changes were missed. With
--output json each change is an object of its own, over several lines.`,
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if count < 0 {
				return usageError{error: errors.New("--count is at least 0")}
			}
			conn, r, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			w, n := c.OutOrStdout(), 0
			for event, err := range conn.Cache(r.Namespace, *cache).Watch(c.Context()) {
				if err != nil && c.Context().Err() != nil && count == 0 {
					return nil // an interrupt is the ordinary end
				}
				if err != nil {
					return err
				}
				change := changeJSON{event.Kind.String(), string(event.Key), event.Version}
				if format != formatTable {
					err = printJSON(w, format, change)
				} else {
					_, err = fmt.Fprintf(w, "%-8s %s\n", change.Change, printable(event.Key))
				}
				if n++; err != nil || n == count {
					return err
				}
			}
			return nil // not reached: the last thing that Watch yields is an error
		},
	}
	c.Flags().IntVar(&count, "count", 0, "end after so many `changes`; 0 for never")
	format.bind(c)
	return c
}
