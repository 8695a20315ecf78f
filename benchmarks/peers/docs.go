package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// A document shows a table between two lines of comment, the first of which names its file.
var shown = regexp.MustCompile(`(?s)(<!-- results: ([a-z]+\.md) -->\n).*?(<!-- end of results -->\n)`)

// runDocs puts the tables of a directory of results into documents, and its plots below. What the directory does not
// have stays as it is.
func runDocs(args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("peers docs", flag.ContinueOnError)
	flags.SetOutput(stderr)
	from := flags.String("from", "", "`directory` of results")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil || *from == "" || flags.NArg() == 0 {
		fmt.Fprintln(stderr, "peers: want -from directory and the documents")
		return 2
	}
	for _, file := range flags.Args() {
		if err := fillIn(file, *from); err != nil {
			fmt.Fprintln(stderr, "peers:", err)
			return 1
		}
	}
	return 0
}

func fillIn(file, from string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var errs []error
	text := shown.ReplaceAllFunc(old, func(block []byte) []byte {
		parts := shown.FindSubmatch(block)
		table, err := os.ReadFile(filepath.Join(from, string(parts[2])))
		if errors.Is(err, fs.ErrNotExist) {
			return block
		}
		pictures, globErr := filepath.Glob(filepath.Join(from, strings.TrimSuffix(string(parts[2]), ".md")+"-*.png"))
		errs = append(errs, err, globErr)
		filled := [][]byte{parts[1], table}
		for _, picture := range pictures {
			path, err := filepath.Rel(filepath.Dir(file), picture)
			errs = append(errs, err)
			filled = append(filled, fmt.Appendf(nil, "![%s](%s)\n", filepath.Base(picture), filepath.ToSlash(path)))
		}
		return bytes.Join(append(filled, parts[3]), []byte("\n"))
	})
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}
