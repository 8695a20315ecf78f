package main

import (
	"errors"
	"fmt"
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
	Version uint64 `json:"version,omitempty,string"` // a text: JSON readers whose numbers are doubles would round it
	payload
}

func (a *app) newCacheGet(cache *string) *cobra.Command {
	format := payloadFormat{formatText, formatText}
	var after delimiter
	c := &cobra.Command{
		Use:   "get KEY...",
		Short: "Print what is stored under keys",
		Long: `Print what is stored under keys. Exit code 4 says that one was missing.

By default each value is printed on a line of its own, which a terminal gets quoted if it could do something else than
print. --output raw prints values byte for byte and nothing else, but what --delimiter says follows each.

JSON has "payload" for a value that is text (UTF-8) and "payload_base64" for others, and versions as texts, because
many readers of JSON round numbers of that size: --if-version takes them as they are.`,
		Example: `  felix cache get greeting
  felix cache get avatar --output raw > me.png
  felix cache put greeting hi --if-version $(felix cache get greeting -o json | jq -r '.[0].version')`,
		Args: arguments(1, -1),
		RunE: func(c *cobra.Command, keys []string) error {
			conn, r, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			results := conn.Cache(r.Namespace, *cache).GetMany(c.Context(), keys...)
			w := c.OutOrStdout()
			line := func(value []byte) []byte { return append(slices.Clip(value), '\n') }
			switch {
			case format.format == formatRaw:
				line = func(value []byte) []byte { return append(slices.Clip(value), after...) }
			case c.Flags().Changed("delimiter"):
				return usageError{error: errors.New("--delimiter needs --output raw")}
			case isTerminal(w):
				line = func(value []byte) []byte { return []byte(printable(value) + "\n") }
			}
			asLines := format.format == formatRaw || format.format == formatText
			var errs []error
			entries := make([]entryJSON, len(keys))
			for i, result := range results {
				entries[i] = entryJSON{Key: keys[i], Found: result.Err == nil, Version: result.Version}
				switch {
				case result.Err == nil && asLines:
					_, err := w.Write(line(result.Value))
					errs = append(errs, asOutput(err))
				case result.Err == nil:
					entries[i].payload = newPayload(result.Value)
				case errors.Is(result.Err, client.ErrMiss):
					errs = append(errs, fmt.Errorf("%q: %w", keys[i], client.ErrMiss))
				default:
					return result.Err
				}
			}
			if !asLines {
				errs = append(errs, printList(w, format.format, entries, "KEY\tVERSION\tVALUE", func(e entryJSON) string {
					if !e.Found {
						return printable([]byte(e.Key)) + "\t-\t-"
					}
					return fmt.Sprintf("%s\t%d\t%s", e.Key, e.Version, e.printable())
				}))
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().Var(&after, "delimiter", "what follows each raw value")
	format.bind(c, "")
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
		Long: `Store a value under a key, byte for byte: the argument, the content of a file, or all of the standard input, which an
argument - and a file - stand for as well.

With --if-absent or --if-version nothing is replaced but what is meant (exit code 1 if there is something else).`,
		Example: `  felix cache put greeting hello --ttl 10m
  felix cache put avatar --file me.png`,
		Args: arguments(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := exclusive(c, "if-absent", "if-version"); err != nil {
				return err
			}
			if ttl < 0 {
				return usagef("--ttl %v: want at least 0, which is no expiry", ttl)
			}
			value, err := argumentFileOrInput(c, args[1:], file)
			if err != nil {
				return err
			}
			conn, r, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			h := conn.Cache(r.Namespace, *cache)
			if !absent && !c.Flags().Changed("if-version") {
				return h.Put(c.Context(), args[0], value, lifetime(ttl))
			}
			now, err := h.PutIf(c.Context(), args[0], value, lifetime(ttl), version)
			if errors.Is(err, client.ErrVersion) {
				return fmt.Errorf("%q: %w: it is %d (0 for no entry)", args[0], client.ErrVersion, now)
			}
			return err
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 0, "lifetime; 0 for no expiry")
	c.Flags().StringVarP(&file, "file", "f", "", "store the content of a `file`; - for the standard input")
	c.Flags().BoolVar(&absent, "if-absent", false, "only if there is no entry")
	c.Flags().Uint64Var(&version, "if-version", 0, "only if the entry has this `version`, which felix cache get -o table shows; 0 only if there is none")
	return c
}

// argumentFileOrInput returns the one of the three that is given.
func argumentFileOrInput(c *cobra.Command, argument []string, file string) ([]byte, error) {
	switch {
	case len(argument) > 0 && file != "":
		return nil, usageError{error: errors.New("either an argument or --file, not both")}
	case len(argument) > 0 && argument[0] != standardInput:
		return []byte(argument[0]), nil
	case file == "":
		file = standardInput
	}
	return fileOrInput(c, file, "the value")
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

// lifetime is that of an entry for the client. ttl is at least 0, and 0 is no expiry.
func lifetime(ttl time.Duration) time.Duration {
	if ttl == 0 {
		return client.NoExpiry
	}
	return ttl
}

// changeJSON is a change of a cache as JSON.
type changeJSON struct {
	Change  string `json:"change"`
	Key     string `json:"key,omitempty"`
	Version uint64 `json:"version,omitempty,string"`
}

func (a *app) newCacheWatch(cache *string) *cobra.Command {
	format := formatTable
	var count int
	c := &cobra.Command{
		Use:   "watch",
		Short: "Print the changes of a cache",
		Long: `Print the changes of a cache, each with its key and version, until an interrupt or --count: set, deleted, expired and
evicted. Values are not printed. A "reset" says that anything may have changed: it comes first, and whenever changes were
missed.

--output json is one array, whose end comes with that of the command; ndjson is an object per line. Versions are
texts, as in "felix cache get".`,
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if count < 0 {
				return usageError{error: errors.New("--count is at least 0")}
			}
			conn, r, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			w, n := c.OutOrStdout(), 0
			list := jsonList{w: w, format: format}
			defer func() { err = errors.Join(err, list.end()) }()
			for event, err := range conn.Cache(r.Namespace, *cache).Watch(c.Context()) {
				if err != nil && c.Context().Err() != nil && count == 0 {
					return nil // an interrupt is the ordinary end
				}
				if err != nil {
					return err
				}
				change := changeJSON{event.Kind.String(), string(event.Key), event.Version}
				if format != formatTable {
					err = list.add(change)
				} else {
					_, err = fmt.Fprintf(w, "%-8s %s\n", change.Change, printable(event.Key))
					err = asOutput(err)
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
