package codec_test

import (
	"errors"
	"fmt"

	"github.com/felix-mq/felix/codec"
)

// A frame is appended whole, and parsed in two steps: the header says what the payload is.
func ExampleParsePublishBatch() {
	frame := codec.AppendPublishBatch(nil, "acme", "default", "orders", [][]byte{[]byte("first"), []byte("second")})

	header, err := codec.ParseHeader(frame)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("flags %#04x, %d bytes of payload\n", uint16(header.Flags), header.Length)

	batch, err := codec.ParsePublishBatch(frame[codec.HeaderLen:])
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s/%s/%s\n", batch.Tenant, batch.Namespace, batch.Stream)
	for i, item := range batch.Items.All() {
		fmt.Printf("%d: %s\n", i, item)
	}
	// Output:
	// flags 0x0001, 46 bytes of payload
	// acme/default/orders
	// 0: first
	// 1: second
}

// A broker delivers a received batch without encoding it again.
func ExampleRewriteShared() {
	received := codec.AppendPublishBatch(nil, "acme", "default", "orders", [][]byte{[]byte("hello")})
	batch, err := codec.ParsePublishBatch(received[codec.HeaderLen:])
	if err != nil {
		fmt.Println(err)
		return
	}
	// The positions in the batch count from the beginning of the payload.
	event := codec.RewriteShared(received, codec.HeaderLen+batch.CountAt, codec.HeaderLen+batch.End)
	fmt.Printf("%q\n", event)
	// Output:
	// "FLX1\x00\x01\x00\x04\x00\x00\x00\r\x00\x00\x00\x01\x00\x00\x00\x05hello"
}

func ExampleParseMessage() {
	var m codec.Message // reused for all messages of a stream
	for _, payload := range []string{
		`{"type":"cache_get","tenant_id":"acme","namespace":"default","cache":"primary","key":"k","request_id":7}`,
		`{"type":"cache_get","tenant_id":"acme","namespace":"default","cache":"primary"}`,
	} {
		if err := codec.ParseMessage([]byte(payload), &m); err != nil {
			fmt.Println(err, "/", errors.Is(err, codec.ErrMissingField))
			continue
		}
		fmt.Printf("%v of %s for request %d\n", m.Type, m.Key, m.RequestID)
	}
	// Output:
	// cache_get of k for request 7
	// codec: cache_get lacks a required member / true
}
