package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/felix-mq/felix/storage"
)

// Exports are written and read in this file. Package storage has their binary form; that of lines of JSON is here.

// exportHead is the first line of an export in JSON. It is written in this order.
type exportHead struct {
	Export int    `json:"felix_export"` // the version of this form
	Base   uint64 `json:"base_offset"`
	Tail   uint64 `json:"tail_offset"`
}

// exported is an event in an export in JSON.
type exported struct {
	Offset uint64 `json:"offset"`
	Time   int64  `json:"time_us"` // microseconds since 1970
	payload
}

// exportVersion is that of the lines of JSON.
const exportVersion = 1

func newStorageExport() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "export DIR LOG",
		Short: "Write a log to the standard output, for felix storage import",
		Long: `Write the events of a log to the standard output, with their offsets, times and exact bytes: in a binary form with
checksums, or with --json as lines of JSON. The first of these has "felix_export", "base_offset" and "tail_offset", and each
of the others "offset", "time_us" (microseconds since 1970), and "payload" for a payload that is text (UTF-8) or
"payload_base64".`,
		Example: `  felix storage export /var/lib/felix t1/default/orders > orders.felix
  felix storage export /var/lib/felix t1/default/orders --json | jq .`,
		Args: arguments(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if !asJSON && isTerminal(c.OutOrStdout()) {
				return usageError{errors.New("an export is not for a terminal"), "write it to a file, or see --json"}
			}
			return withStore(args[0], toLook, storage.Options{}, func(s *storage.Store) error {
				l, err := logNamed(s, args[1])
				if err != nil {
					return err
				}
				w := bufio.NewWriterSize(asOutputs{c.OutOrStdout()}, pageBytes)
				if asJSON {
					err = exportJSON(w, l)
				} else {
					err = l.Export(w)
				}
				return errors.Join(err, w.Flush())
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "lines of JSON")
	return c
}

// asOutputs marks failures to write as such.
type asOutputs struct{ io.Writer }

func (w asOutputs) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	return n, asOutput(err)
}

func exportJSON(w io.Writer, l *storage.Log) error {
	b := l.Bounds()
	if err := printJSON(w, formatNDJSON, exportHead{exportVersion, b.Base, b.Tail}); err != nil {
		return err
	}
	var failed error
	err := eachPage(l, b.Base, func(records []storage.Record) bool {
		for _, r := range records {
			if failed = printJSON(w, formatNDJSON, exported{r.Offset, r.Time, newPayload(r.Payload)}); failed != nil {
				return false
			}
		}
		return true
	})
	return errors.Join(err, failed)
}

func newStorageImport() *cobra.Command {
	return &cobra.Command{
		Use:   "import DIR LOG",
		Short: "Read a log from the standard input, as felix storage export has written it",
		Long: `Read an export from the standard input, in either form, and put its events into a log that has none: with their offsets,
times and exact bytes. A log that has events, or had some, is refused. If an import fails, because the export is damaged or
not complete for instance, remove the directory of the log and import again.

Name the log as TENANT/NAMESPACE/STREAM. The data directory has to exist, and may be empty. Clients that resume take the
stream for a new one, unless it is in the data directory that it was in before.`,
		Example: "  felix storage import /var/lib/felix t1/default/orders < orders.felix",
		Args:    arguments(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			in := c.InOrStdin()
			if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return usageError{errors.New("the standard input is a terminal"), "felix storage import DIR LOG < FILE"}
			}
			return withStore(args[0], toFill, storage.Options{}, func(s *storage.Store) error {
				l, err := s.LogIn(logDir(args[1]))
				if errors.Is(err, storage.ErrNoLog) {
					return usageError{err, "name the log as TENANT/NAMESPACE/STREAM"}
				}
				if err != nil {
					return err
				}
				n, err := importLog(c, l, bufio.NewReaderSize(in, pageBytes))
				if errors.Is(err, storage.ErrNotEmpty) {
					return usageError{fmt.Errorf("%s: %w", args[1], err), "name another log, or remove the directory of this one"}
				}
				if err != nil {
					return fmt.Errorf("after %s: %w", plural(int(n), "event"), err)
				}
				fmt.Fprintf(c.ErrOrStderr(), "%s imported: offsets %d to %d\n", plural(int(n), "event"), l.Base(), l.Tail())
				return nil
			})
		},
	}
}

// importLog reads an export in either form, and returns how many events were put into the log.
func importLog(c *cobra.Command, l *storage.Log, in *bufio.Reader) (n uint64, err error) {
	var r *storage.Restore
	begin := func(base, _ uint64) (err error) {
		r, err = l.Restore(base)
		return err
	}
	each := func(rec storage.Record) error {
		if err := c.Context().Err(); err != nil {
			return err
		}
		err := r.Add(rec)
		if err == nil {
			n++
		}
		return err
	}
	first, _ := in.Peek(1)
	if bytes.Equal(first, []byte("{")) {
		err = readExportJSON(in, begin, each)
	} else {
		err = storage.ReadExport(in, begin, each)
	}
	if r != nil {
		err = errors.Join(err, r.Flush())
	}
	return n, err
}

// maxExportLine bounds a line of JSON: each byte of a payload may be an escape of six.
const maxExportLine = 6*storage.MaxPayload + 4<<10

// readExportJSON is storage.ReadExport for lines of JSON.
func readExportJSON(in io.Reader, begin func(base, tail uint64) error, each func(storage.Record) error) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxExportLine)
	// decode reads a line, and fails with io.EOF at the end.
	decode := func(v any) error {
		if !lines.Scan() {
			return cmp.Or(lines.Err(), io.EOF)
		}
		d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		d.DisallowUnknownFields()
		err := d.Decode(v)
		if err == nil && d.More() {
			err = errors.New("there is more than an object in the line")
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("an empty line")
		}
		return err
	}
	var head exportHead
	if err := decode(&head); err != nil {
		return fmt.Errorf("no export: %w", err)
	}
	if head.Export != exportVersion || head.Base > head.Tail {
		return fmt.Errorf("no export of version %d", exportVersion)
	}
	if err := begin(head.Base, head.Tail); err != nil {
		return err
	}
	for next := head.Base; next < head.Tail; next++ {
		var line struct {
			Offset *uint64 `json:"offset"`
			Time   *int64  `json:"time_us"`
			Text   *string `json:"payload"`
			Bytes  *string `json:"payload_base64"`
		}
		err := decode(&line)
		switch {
		case errors.Is(err, io.EOF):
			return fmt.Errorf("the export ends at offset %d, want %d", next, head.Tail)
		case err != nil:
			return fmt.Errorf("offset %d: %w", next, err)
		case line.Offset == nil || *line.Offset != next:
			return fmt.Errorf("want offset %d next", next)
		case line.Time == nil || (line.Text == nil) == (line.Bytes == nil):
			return fmt.Errorf("offset %d: want time_us, and one of payload and payload_base64", next)
		}
		rec := storage.Record{Offset: next, Time: *line.Time}
		if line.Text != nil {
			rec.Payload = []byte(*line.Text)
		} else if rec.Payload, err = base64.StdEncoding.DecodeString(*line.Bytes); err != nil {
			return fmt.Errorf("offset %d: %w", next, err)
		}
		if err := each(rec); err != nil {
			return err
		}
	}
	if lines.Scan() || lines.Err() != nil {
		return cmp.Or(lines.Err(), fmt.Errorf("there is more after offset %d, the last", head.Tail))
	}
	return nil
}
