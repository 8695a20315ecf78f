package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/storage"
)

// pageBytes is how much of a log is read at a time.
const pageBytes = 1 << 20

func newStorage() *cobra.Command {
	c := group("storage", "Look into the data directory of a broker", newStorageList(), newStorageVerify(), newStorageDump())
	c.Long = `Look into the data directory of a broker that does not run (docs/operate/durability.md). What a crash has left in the journal
is written to the files of the streams first, as the start of a broker does.

A log is named by its directory, as felix storage ls prints it.`
	return c
}

// withStore runs f with the data directory open.
func withStore(dir string, opt storage.Options, f func(*storage.Store) error) error {
	switch present, err := storage.Present(dir, opt); { // what is not there would be made
	case err != nil:
		return usageError{error: err}
	case !present:
		return usagef("%s is no data directory: it has neither a journal nor a log", dir)
	}
	s, err := storage.Open(dir, opt)
	if errors.Is(err, storage.ErrInUse) {
		return usageError{err, "a broker that runs has it: felix stream info asks that one"}
	}
	if err != nil {
		return err
	}
	return errors.Join(f(s), s.Close())
}

// logInfo is a log as felix storage ls prints it.
type logInfo struct {
	Log        string    `json:"log"`
	Base       uint64    `json:"base"`
	Tail       uint64    `json:"tail"`
	Bytes      int64     `json:"bytes"`
	Segments   int       `json:"segments"`
	OldestFile time.Time `json:"oldest_file"` // when the newest event of the oldest file came
}

func newStorageList() *cobra.Command {
	format := formatTable
	c := &cobra.Command{
		Use:     "ls DIR",
		Short:   "List the logs in a data directory",
		Example: "  felix storage ls /var/lib/felix",
		Args:    arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(args[0], storage.Options{}, func(s *storage.Store) error {
				dirs, err := s.Dirs()
				if err != nil {
					return err
				}
				list := make([]logInfo, 0, len(dirs))
				for _, dir := range dirs {
					l, err := s.LogIn(dir)
					if err != nil {
						return err
					}
					b := l.Bounds()
					list = append(list, logInfo{dir, b.Base, b.Tail, b.Bytes, b.Segments, time.UnixMicro(b.Oldest).UTC()})
				}
				return printList(c.OutOrStdout(), format, list, "LOG\tBASE\tTAIL\tBYTES\tFILES\tOLDEST FILE", func(l logInfo) string {
					return fmt.Sprintf("%s\t%d\t%d\t%s\t%d\t%s", l.Log, l.Base, l.Tail, humanize.IBytes(uint64(l.Bytes)), l.Segments, l.OldestFile.Format(time.RFC3339))
				})
			})
		},
	}
	format.bind(c)
	return c
}

// verified is what felix storage verify says of a log: a line of JSON.
type verified struct {
	Event      string  `json:"event"`
	Log        string  `json:"log"`
	BaseOffset uint64  `json:"base_offset"`
	TailOffset uint64  `json:"tail_offset"`
	Records    uint64  `json:"records"`
	Segments   int     `json:"segments"`
	Seconds    float64 `json:"recovery_seconds"`
	Error      string  `json:"error,omitempty"`
}

func newStorageVerify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify DIR [LOG]",
		Short: "Read everything in a data directory and check it",
		Long: `Read all events of one log or of all of them, and check their checksums and that their offsets have no gap. It prints an
object of JSON for each log, and fails if one of them is damaged.`,
		Example: "  felix storage verify /var/lib/felix",
		Args:    arguments(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(args[0], storage.Options{VerifyAll: true}, func(s *storage.Store) error {
				dirs, err := s.Dirs()
				if err == nil && len(args) > 1 {
					if !slices.Contains(dirs, args[1]) {
						return noLog(args[1])
					}
					dirs = args[1:]
				}
				damaged := 0
				for _, dir := range dirs {
					v := verified{Event: "verified", Log: dir}
					began := time.Now()
					if e := v.verify(s); e != nil {
						v.Event, v.Error = "damaged", e.Error()
						damaged++
					}
					v.Seconds = time.Since(began).Seconds()
					err = errors.Join(err, printJSON(c.OutOrStdout(), formatNDJSON, v))
				}
				if err == nil && damaged > 0 {
					err = fmt.Errorf("%d of %d logs are damaged", damaged, len(dirs))
				}
				return err
			})
		},
	}
}

// verify reads the whole log. What is read is verified.
func (v *verified) verify(s *storage.Store) error {
	l, err := s.LogIn(v.Log)
	if err != nil {
		return err
	}
	b := l.Bounds()
	v.BaseOffset, v.TailOffset, v.Segments = b.Base, b.Tail, b.Segments
	return eachPage(l, b.Base, func(records []storage.Record) bool {
		v.Records += uint64(len(records))
		return true
	})
}

// eachPage calls f with the records from an offset on, until it returns false.
func eachPage(l *storage.Log, from uint64, f func([]storage.Record) bool) error {
	r, err := l.Read(from)
	if err != nil {
		return err
	}
	defer r.Free()
	for {
		records, err := r.Next(pageBytes)
		if err != nil {
			return err
		}
		if len(records) == 0 || !f(records) {
			return nil
		}
	}
}

// dumped is an event as felix storage dump prints it.
type dumped struct {
	Offset uint64    `json:"offset"`
	Time   time.Time `json:"time"`
	payload
}

func newStorageDump() *cobra.Command {
	var from, limit uint64
	c := &cobra.Command{
		Use:   "dump DIR LOG",
		Short: "Print the events of a log",
		Long: `Print the events of a log, an object of JSON in each line: "offset", "time" at which it was published, and "payload" for a
payload that is text (UTF-8) or "payload_base64".`,
		Example: "  felix storage dump /var/lib/felix acme_default_orders_0-0d3aed4b998d2798 --from 42",
		Args:    arguments(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(args[0], storage.Options{}, func(s *storage.Store) error {
				dirs, err := s.Dirs()
				if err != nil {
					return err
				}
				l, err := logNamed(s, dirs, args[1])
				if err != nil {
					return err
				}
				from := max(from, l.Base())
				if from > l.Tail() {
					return usagef("--from is %d, and the log ends at %d", from, l.Tail())
				}
				return dump(c.OutOrStdout(), l, from, limit)
			})
		},
	}
	c.Flags().Uint64Var(&from, "from", 0, "first `offset`; without it the oldest")
	c.Flags().Uint64Var(&limit, "limit", 0, "most `events` to print; 0 is all")
	return c
}

func logNamed(s *storage.Store, dirs []string, name string) (*storage.Log, error) {
	for _, dir := range dirs {
		if dir == name {
			return s.LogIn(dir)
		}
	}
	return nil, noLog(name)
}

func noLog(name string) error {
	return usageError{fmt.Errorf("there is no log %q", name), "felix storage ls lists them"}
}

func dump(w io.Writer, l *storage.Log, from, limit uint64) error {
	printed, failed := uint64(0), error(nil)
	err := eachPage(l, from, func(records []storage.Record) bool {
		for _, r := range records {
			if limit > 0 && printed == limit {
				return false
			}
			printed++
			e := dumped{r.Offset, time.UnixMicro(r.Time).UTC(), newPayload(r.Payload)}
			if failed = printJSON(w, formatNDJSON, e); failed != nil {
				return false
			}
		}
		return true
	})
	return errors.Join(err, failed)
}
