// Command generate writes the pages of docs that are made from code, so that they cannot disagree with it. Run it with
//
//	go generate ./docs/generate
package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/felix-mq/felix/codec"
)

//go:generate go run . ../protocol/errors.md ../api

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: generate ERRORS-FILE API-DIRECTORY")
	}
	if err := os.WriteFile(os.Args[1], errorsPage(), 0o644); err != nil {
		log.Fatal(err)
	}
	if err := writeAPI(os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

// public are the packages whose exported names programs depend on. A change of one of them shows in docs/api.
var public = []string{"auth", "broker", "cache", "catalog", "client", "client/felixtest", "client/nearcache", "codec"}

// writeAPI writes what each public package exports to a file of its own.
func writeAPI(dir string) error {
	for _, name := range public {
		text, err := exec.Command("go", "doc", "-all", "github.com/felix-mq/felix/"+name).Output()
		if err != nil {
			return fmt.Errorf("go doc %s: %w", name, err)
		}
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "-")+".txt")
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// othersTexts are texts of the reference that have a code here and are not in the table of refusals.
var othersTexts = []string{
	"server overloaded", "publish queue full", "publish enqueue timed out",
	"publish ingress per-connection byte budget exhausted", "publish ingress byte budget exhausted",
}

// errorsPage is the table of refusals (docs/protocol/errors.md).
func errorsPage() []byte {
	var b bytes.Buffer
	b.WriteString(`# Errors

<!-- Generated from package codec by go generate ./docs/generate. Do not edit. -->

A broker sends texts, which are for people. Programs use the code of a text. The Go client and the felix command find it with one function of package
codec, and clients in other languages with the tables of this page. *Retryable* means that the same request may succeed later.

| Code | Retryable | Meaning |
|---|---|---|
`)
	for _, c := range codec.Codes() {
		retryable := "no"
		if c.Retryable() {
			retryable = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", c, retryable, c.Meaning())
	}
	b.WriteString(`
What a broker answers to what, and what happens to the stream. The connection and its other streams go on in every case. An error is
written before the end that it causes. Capital words stand for values: such texts are recognized by what stands in front of the first colon.

| Text | Code | As | When | Stream |
|---|---|---|---|---|
`)
	for _, r := range codec.Refusals() {
		text := "(none)"
		if r.Text != "" {
			text = "`" + r.Text + "`"
		}
		code := "(none)"
		if r.Code != codec.CodeUnknown {
			code = "`" + string(r.Code) + "`"
		}
		cells := []string{text, code, string(r.Form), r.When, string(r.Stream)}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
	}
	b.WriteString(`
*Ends* and *clean end*: the broker finishes its half of the stream after everything that was queued, and asks the peer to stop
sending (STOP_SENDING, code 0) if it has not finished. After *ends* nothing that came after the frame is looked at. See
[the end of a stream](session.md#the-end-of-a-stream).

Refused requests of the extension [cache](extensions.md#replies) have the same texts and leave their stream open. Texts that are not in the table have no code.
Other brokers send some more:

`)
	for _, text := range othersTexts {
		fmt.Fprintf(&b, "- `%s`: `%s`\n", text, codec.CodeOf(text))
	}
	b.WriteString(`
Limits against abuse that end a stream or a connection without a text are in [limits.md](../operate/limits.md).
`)
	return b.Bytes()
}
