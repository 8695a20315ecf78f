package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/internal/vfs"
	"github.com/felix-mq/felix/storage"
)

// pageBytes is how much of a log is read at a time.
const pageBytes = 1 << 20

func newStorage() *cobra.Command {
	c := group("storage", "Look into the data directory of a broker, mend it, and measure its disk",
		newStorageList(), newStorageVerify(), newStorageRepair(), newStorageDump(), newStorageExport(), newStorageImport(), newStorageBench())
	c.Long = `Look into the data directory of a broker that does not run, mend it, copy streams, and measure its disk
(docs/operate/durability.md). Commands that look change nothing: what a crash has left in the journal is put in its place in
memory only.

A log is named by its directory, as felix storage ls prints it, or as TENANT/NAMESPACE/STREAM.`
	return c
}

// access is what a command does with a data directory.
type access int

const (
	toLook access = iota // it stays as it is: what is changed is changed in memory
	toMend               // it is changed
	toFill               // it is changed, and may be empty before
)

// withStore runs f with the data directory open.
func withStore(dir string, to access, opt storage.Options, f func(*storage.Store) error) (err error) {
	present := true
	if to == toFill {
		_, err = os.Stat(dir)
	} else {
		present, err = storage.Present(dir, opt)
	}
	switch { // what is not there would be made
	case err != nil:
		return usageError{error: err}
	case !present:
		return usagef("%s is no data directory: it has neither a journal nor a log", dir)
	}
	if to == toLook {
		overlay := vfs.NewOverlay(vfs.OS{})
		defer func() { err = errors.Join(err, overlay.Close()) }()
		opt.FS = overlay
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
	Error      string    `json:"error,omitempty"`
}

// row is the log in a table.
func (l logInfo) row() string {
	if l.Error != "" {
		return fmt.Sprintf("%s\t-\t-\t-\t-\t%s", l.Log, escape(l.Error))
	}
	return fmt.Sprintf("%s\t%d\t%d\t%s\t%d\t%s", l.Log, l.Base, l.Tail, humanize.IBytes(uint64(l.Bytes)), l.Segments, l.OldestFile.Format(time.RFC3339))
}

func newStorageList() *cobra.Command {
	format := formatTable
	c := &cobra.Command{
		Use:   "ls DIR",
		Short: "List the logs in a data directory",
		Long: `List the logs in a data directory. One that cannot be opened is listed with the reason, and fails the command when
all are listed. Whether the others have damage shows felix storage verify.`,
		Example: "  felix storage ls /var/lib/felix",
		Args:    arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(args[0], toLook, storage.Options{}, func(s *storage.Store) error {
				dirs, err := s.Dirs()
				if err != nil {
					return err
				}
				list := make([]logInfo, 0, len(dirs))
				damaged := 0
				for _, dir := range dirs {
					l, err := s.LogIn(dir)
					if err != nil {
						damaged++
						list = append(list, logInfo{Log: dir, Error: err.Error()})
						continue
					}
					b := l.Bounds()
					list = append(list, logInfo{dir, b.Base, b.Tail, b.Bytes, b.Segments, time.UnixMicro(b.Oldest).UTC(), ""})
				}
				err = printList(c.OutOrStdout(), format, list, "LOG\tBASE\tTAIL\tBYTES\tFILES\tOLDEST FILE", logInfo.row)
				return errors.Join(err, areDamaged(damaged, len(dirs)))
			})
		},
	}
	format.bind(c)
	return c
}

// areDamaged is the error for logs that are damaged, or nil if there are none.
func areDamaged(damaged, all int) error {
	if damaged == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d logs are damaged", damaged, all)
}

// verified is what felix storage verify says of a log: a line of JSON.
type verified struct {
	Event      string   `json:"event"`
	Log        string   `json:"log"`
	BaseOffset uint64   `json:"base_offset"`
	TailOffset uint64   `json:"tail_offset"`
	Records    uint64   `json:"records"`
	Segments   int      `json:"segments"`
	Seconds    float64  `json:"recovery_seconds"`
	Mendable   []mended `json:"mendable,omitempty"`
	Error      string   `json:"error,omitempty"`
}

func (v verified) row() string {
	state := "good"
	switch {
	case v.Error != "":
		state = escape(v.Error)
	case len(v.Mendable) > 0:
		state = "good, and can be mended: " + v.Mendable[0].text()
	}
	return fmt.Sprintf("%s\t%d\t%d\t%d\t%d\t%s", v.Log, v.BaseOffset, v.TailOffset, v.Records, v.Segments, state)
}

// mended is something in a log that was mended, or can be.
type mended struct {
	Log      string `json:"log"`
	File     string `json:"file"`
	Position int64  `json:"position"`
	Damage   string `json:"damage"`
	Cut      int64  `json:"cut_bytes"`
	Lost     string `json:"lost"`
}

func newMended(r storage.Repair) mended {
	lost := "nothing"
	switch {
	case r.Cut > 0 && r.Damage == storage.DamageTruncated:
		lost = "an event that was not finished"
	case r.Cut > 0:
		lost = "the last event, which may have been acknowledged"
	}
	return mended{r.Log, r.File, r.Position, string(r.Damage), r.Cut, lost}
}

// text is the same for people.
func (m mended) text() string {
	return fmt.Sprintf("%s at %d of %s; lost: %s", m.Damage, m.Position, m.File, m.Lost)
}

func newStorageVerify() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "verify DIR [LOG]",
		Short: "Read everything in a data directory and check it",
		Long: `Read all events of one log or of all of them, and check their checksums, that their offsets have no gap, and their
indexes. It fails if a log is damaged. An event that is not finished at the end of a log and an index that is wrong are no
damage: nothing that was acknowledged is missing, and felix storage repair mends them.

--json prints an object for each log, as the tool of the reference implementation does.`,
		Example: "  felix storage verify /var/lib/felix",
		Args:    arguments(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			var found []mended
			opt := storage.Options{VerifyAll: true, Repaired: func(r storage.Repair) { found = append(found, newMended(r)) }}
			return withStore(args[0], toLook, opt, func(s *storage.Store) error {
				dirs, err := chosenLogs(s, args[1:])
				if err != nil {
					return err
				}
				damaged := 0
				list := make([]verified, 0, len(dirs))
				for _, dir := range dirs {
					v := verified{Event: "verified", Log: dir}
					began := time.Now()
					if e := v.verify(s); e != nil {
						v.Event, v.Error = "damaged", e.Error()
						damaged++
					}
					v.Seconds = time.Since(began).Seconds()
					v.Mendable = ofLog(found, dir)
					if asJSON {
						err = errors.Join(err, printJSON(c.OutOrStdout(), formatNDJSON, v))
					}
					list = append(list, v)
				}
				if !asJSON {
					err = printList(c.OutOrStdout(), formatTable, list, "LOG\tBASE\tTAIL\tEVENTS\tFILES\tSTATE", verified.row)
				}
				return errors.Join(err, areDamaged(damaged, len(dirs)))
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "an object of JSON in a line for each log")
	return c
}

func ofLog(all []mended, log string) (of []mended) {
	for _, m := range all {
		if m.Log == log {
			of = append(of, m)
		}
	}
	return of
}

// chosenLogs are the logs of a data directory, or the one that is named.
func chosenLogs(s *storage.Store, named []string) ([]string, error) {
	dirs, err := s.Dirs()
	if err != nil || len(named) == 0 {
		return dirs, err
	}
	dir := logDir(named[0])
	if !slices.Contains(dirs, dir) {
		return nil, noLog(named[0])
	}
	return []string{dir}, nil
}

// logDir is the directory of a log that is named by it, or as TENANT/NAMESPACE/STREAM.
func logDir(name string) string {
	parts := strings.Split(name, "/")
	if len(parts) != 3 {
		return name
	}
	return storage.Key{Tenant: parts[0], Namespace: parts[1], Stream: parts[2]}.Dir()
}

func newStorageRepair() *cobra.Command {
	format := formatTable
	yes := false
	c := &cobra.Command{
		Use:   "repair DIR [LOG]",
		Short: "Mend what can be mended in a data directory",
		Long: `Mend one log, or all of them, and say what is lost:

  an event at the end that was not finished     is cut off; nobody was told that it is safe
  an event at the end whose checksum is wrong   is cut off; it may have been acknowledged
  an index that is missing or wrong             is made again; nothing is lost

Without --yes it says what it would do and changes nothing. Damage in the middle of a log is not mended: it fails the
command, and the log is left as it is. Bring that from a backup.`,
		Example: `  felix storage repair /var/lib/felix
  felix storage repair /var/lib/felix t1/default/orders --yes`,
		Args: arguments(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			var found []mended
			opt := storage.Options{VerifyAll: true, RepairTail: true, Repaired: func(r storage.Repair) { found = append(found, newMended(r)) }}
			to := toLook
			if yes {
				to = toMend
			}
			return withStore(args[0], to, opt, func(s *storage.Store) error {
				dirs, err := chosenLogs(s, args[1:])
				if err != nil {
					return err
				}
				damaged, errOut := 0, c.ErrOrStderr()
				for _, dir := range dirs {
					if _, err := s.LogIn(dir); err != nil {
						damaged++
						fmt.Fprintf(errOut, "%s\n", colored(errOut, red, plain(err)))
					}
				}
				err = printList(c.OutOrStdout(), format, found, "LOG\tFILE\tPOSITION\tDAMAGE\tCUT\tLOST", func(m mended) string {
					return fmt.Sprintf("%s\t%s\t%d\t%s\t%d\t%s", m.Log, m.File, m.Position, m.Damage, m.Cut, m.Lost)
				})
				switch {
				case len(found) == 0:
					fmt.Fprintln(errOut, "there is nothing to mend")
				case yes:
					fmt.Fprintf(errOut, "%s mended\n", plural(len(found), "place"))
				default:
					fmt.Fprintf(errOut, "%s to mend; nothing was changed: --yes does it\n", plural(len(found), "place"))
				}
				return errors.Join(err, areDamaged(damaged, len(dirs)))
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "change the files")
	format.bind(c)
	return c
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
			return withStore(args[0], toLook, storage.Options{}, func(s *storage.Store) error {
				l, err := logNamed(s, args[1])
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

func logNamed(s *storage.Store, name string) (*storage.Log, error) {
	dirs, err := chosenLogs(s, []string{name})
	if err != nil {
		return nil, err
	}
	return s.LogIn(dirs[0])
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
