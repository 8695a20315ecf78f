package codec

// Flags say how a frame's payload is laid out (docs/protocol/wire.md#flags), and which layouts a peer understands
// (docs/protocol/session.md#negotiation).
type Flags uint16

// The bits.
const (
	FlagPublishBatch     Flags = 0x0001
	FlagEventBatch       Flags = 0x0002
	FlagEventBatchShared Flags = 0x0004
	FlagPublishAcked     Flags = 0x0008
	FlagPublishAck       Flags = 0x0010
	FlagEventOffsets     Flags = 0x0020
	// FlagExtension marks an extension frame. It is unknown except between peers that negotiated an extension.
	FlagExtension Flags = 0x8000

	// KnownFlags are all bits of felix-wire v1, what a complete implementation advertises.
	KnownFlags Flags = 0x003f
	// OriginalV1Flags are to be assumed of a peer that advertised nothing.
	OriginalV1Flags Flags = 0x0007
)

// The layouts: the only combinations that a frame may carry (docs/protocol/wire.md#layouts).
const (
	LayoutJSON          Flags = 0                                       // a [Message]
	LayoutPublish             = FlagPublishBatch                        // client to broker, see [ParsePublishBatch]
	LayoutPublishAcked        = FlagPublishBatch | FlagPublishAcked     // client to broker, see [ParsePublishAckedPrefix]
	LayoutPublishAck          = FlagPublishAck                          // broker to client, see [ParsePublishAck]
	LayoutEvent               = FlagEventBatch                          // broker to client, see [ParseEventBatch]
	LayoutEventOffsets        = FlagEventBatch | FlagEventOffsets       // broker to client
	LayoutShared              = FlagEventBatchShared                    // broker to client
	LayoutSharedOffsets       = FlagEventBatchShared | FlagEventOffsets // broker to client
	LayoutExtension           = FlagExtension                           // see [ParseExtension]
)

// Check fails with [ErrUnknownFlags] or [ErrFlagCombination] if a peer without extensions must not send f. Bits are
// never masked off: what does not belong is refused.
func (f Flags) Check() error {
	switch f {
	case LayoutJSON, LayoutPublish, LayoutPublishAcked, LayoutPublishAck,
		LayoutEvent, LayoutEventOffsets, LayoutShared, LayoutSharedOffsets:
		return nil
	default:
	}
	if f&^KnownFlags != 0 {
		return ErrUnknownFlags.with("unknown bits in the flags %#04x", uint16(f))
	}
	return ErrFlagCombination.with("the flags %#04x do not go together", uint16(f))
}

// FromClient reports whether f is a layout that clients send. JSON goes both ways; see [MessageType.FromClient].
func (f Flags) FromClient() bool {
	return f == LayoutJSON || f == LayoutPublish || f == LayoutPublishAcked
}
