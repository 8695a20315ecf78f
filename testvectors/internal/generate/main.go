// Command generate writes the test vectors of package testvectors.
//
// It is written from the protocol document and shares no code with package codec, which it judges: wire.go has the
// plain encoders, the other files the cases. Run it with
//
//	go generate ./testvectors
package main

import (
	"flag"
	"log"
	"os"
	"path/filepath"
)

func main() {
	dir := flag.String("dir", ".", "the directory of package testvectors")
	flag.Parse()
	for _, f := range files() {
		content, err := f.encode()
		if err != nil {
			log.Fatal(err)
		}
		path := filepath.Join(*dir, filepath.FromSlash(f.path))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			log.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// files is everything the command writes.
func files() []file {
	return []file{
		{
			"valid/json_messages.json",
			"The eighteen JSON messages as an encoder writes them, with and without each optional member.",
			jsonMessages(),
		},
		{
			"valid/json_decoding.json",
			"JSON payloads that a decoder accepts although no encoder writes them: order, whitespace, null, unknown members, escapes.",
			jsonDecoding(),
		},
		{
			"valid/binary.json",
			"The binary layouts, and binary payloads with bytes that a decoder ignores.",
			binaryVectors(),
		},
		{
			"valid/limits.json",
			"Frames at the good side of each limit.",
			limits(),
		},
		{
			"valid/extensions.json",
			"Frames and members of extensions, which only peers that negotiated them understand.",
			extensions(),
		},
		{
			"fanout/rewrites.json",
			"Received publish frames and the event frames a broker makes of them without re-encoding.",
			rewrites(),
		},
		{
			"invalid/headers.json",
			"Frames refused for their header.",
			invalidHeaders(),
		},
		{
			"invalid/flags.json",
			"Frames refused for their flags, before the payload is looked at.",
			invalidFlags(),
		},
		{
			"invalid/binary.json",
			"Frames with a bad binary payload.",
			invalidBinary(),
		},
		{
			"invalid/json_members.json",
			"Each JSON message with one member missing, null, repeated or of a wrong type.",
			invalidMembers(),
		},
		{
			"invalid/json.json",
			"JSON payloads that are no message for another reason: syntax, numbers, strings, depth, enumerations, base64.",
			invalidJSON(),
		},
	}
}
