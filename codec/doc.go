// Package codec reads and writes felix-wire v1 over byte slices: frame headers, flags, JSON messages, binary batches,
// limits, and the texts of errors. It does no I/O, depends on the standard library alone, and allocates nothing for the
// messages of hot paths. docs/protocol specifies it; comments name the section that a rule comes from.
//
// A frame is a header of 12 bytes and a payload, all integers big-endian (docs/protocol/wire.md#header):
//
//	0        4         6       8        12
//	├────────┼─────────┼───────┼────────┼─────────────────┤
//	  "FLX1"   version   flags   length   payload
//
// The flags choose the layout of the payload; [Flags] lists the eight that exist. All batches end in the same list of
// items, which is what lets a broker deliver a publish without encoding it again ([RewriteShared]):
//
//	├───────┼───────┼────────┼───────┼────────┼─ ─ ─
//	  count   len 0   item 0   len 1   item 1
//
// Encoders are named AppendX: they append a whole frame, header included, to a slice and return it, as append does.
// They trust their caller: names are UTF-8, and sizes are within what the format can express ([PublishBatchLen]
// checks that for the frames whose content comes from an application); a size that is not makes them panic.
//
// Decoders are named ParseX and take a payload, or the beginning of a frame for [ParseHeader]. They trust nobody,
// never panic, and return views into their input, valid as long as that is. [ClassOf] says what is wrong with an
// input. Begin reading at [ParseHeader], [Flags] and [Message].
package codec
