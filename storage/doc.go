// Package storage is the durable log of streams. It owns the data directory: the format of its files, when bytes reach
// the device, what a crash leaves, and what is removed after its time. It knows nothing of subscribers or of the
// network.
//
// A [Store] is one data directory. It has a [Log] for each stream. Records get consecutive offsets when they are
// appended. An append completes, by a call of a function, when its records are as safe as its [Class] says.
//
//	Append ─▶ queue ─▶ committer: write to the journal ─▶ sync ─▶ write to segments ─▶ completions
//	                     all that waits, of all logs, in one write and one sync
//
// The journal is one sequence of files for all logs, so that a thousand streams share one sync. A record is safe when
// the journal is. Segments, one sequence of files for each log, are written after the journal without a sync. When a
// journal file is full, a checkpoint syncs the segments that it covers, in the background, and removes it. So the
// journal holds what a crash may take from the segments, and [Open] writes it there again.
//
// A cursor reads a log from any offset. It reads segments only, and what it returns has been verified.
//
// After a failed write or sync nothing more is accepted until the next [Open]: the kernel may have dropped what it
// could not write, and a later sync would not tell. Reads go on.
//
// Files of the directory:
//
//	lock                                     held while a Store is open
//	epoch                                    a random number, which tells this directory from others
//	journal/00000000000000000007.wal         journal files, oldest first
//	acme_default_orders_0-0d3aed4b998d2798/  a log: tenant, namespace, stream, shard, and a hash of them
//	    00000000000000000000.log             segments
//	    00000000000000000000.index           where some records are in them
//	    producers                            who appended its last batches, where that is known
//	    unrecovered.wal                      what the journal had of a log that is damaged
//
// Begin at [Open], [Store.Log], [Log.Append] and [Log.Read]. format.go has the bytes of segments, journal.go those of
// the journal, recover.go what is done with what a crash has left, and producers.go how a batch that is appended again
// is known.
package storage
