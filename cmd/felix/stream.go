package main

import (
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/broker"
)

func (a *app) newStream() *cobra.Command {
	return group("stream", "Look at streams", a.newStreamInfo())
}

func (a *app) newStreamInfo() *cobra.Command {
	format := formatTable
	c := &cobra.Command{
		Use:   "info STREAM",
		Short: "Show what a stream has",
		Long: `Show what a stream of the namespace has: its events, subscriptions and queues, and of a durable stream the class of
acknowledgement, the oldest and the next offset, its bytes and files on disk, and how old the oldest file is.

It asks the HTTP server with the broker's metrics, as felix top does.`,
		Example: `  felix stream info orders
  felix stream info orders --output json`,
		Args: arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.resolve()
			if err != nil {
				return err
			}
			now, err := takeSnapshot(c.Context(), r)
			if err != nil {
				return err
			}
			for _, s := range now.Streams {
				if s.Tenant == r.Tenant && s.Namespace == r.Namespace && s.Stream == args[0] {
					if format != formatTable {
						return printJSON(c.OutOrStdout(), format, s)
					}
					return printStream(c, s)
				}
			}
			return fmt.Errorf("stream %s in namespace %s of tenant %s: %w", args[0], r.Namespace, r.Tenant, errNotFound)
		},
	}
	format.bind(c)
	return c
}

func printStream(c *cobra.Command, s broker.StreamStats) error {
	rows := [][2]string{
		{"stream", s.Tenant + "/" + s.Namespace + "/" + s.Stream},
		{"events", fmt.Sprint(s.Events)},
		{"subscriptions", fmt.Sprint(s.Subscriptions)},
		{"queued", humanize.IBytes(uint64(s.QueuedBytes))},
		{"lost", fmt.Sprint(s.DroppedEvents)},
	}
	if l := s.Log; l != nil {
		rows = append(rows, [2]string{"acknowledged", l.Ack}, [2]string{"base", fmt.Sprint(l.Base)}, [2]string{"tail", fmt.Sprint(l.Tail)},
			[2]string{"on disk", humanize.IBytes(uint64(l.Bytes))}, [2]string{"files", fmt.Sprint(l.Segments)})
		if l.Segments > 0 {
			rows = append(rows, [2]string{"oldest file", (time.Duration(l.OldestMillis) * time.Millisecond).Round(time.Second).String() + " ago"})
		}
	}
	return printList(c.OutOrStdout(), formatTable, rows, "KEY\tVALUE", func(r [2]string) string { return r[0] + "\t" + r[1] })
}
