// Command docs copies the documents of the repository for a package, in which the rest of the repository is missing:
//
//	docs REVISION FROM TO
//
// Links to what is not copied become links to that revision on the web. A link that leads nowhere is an error.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// site is where the repository is on the web.
const site = "https://github.com/felix-mq/felix/blob/"

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: docs REVISION FROM TO")
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
}

func run(revision, from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	var problems []error
	err := filepath.WalkDir(from, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !isDocument(name) {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		text, err = relink(text, revision, from, filepath.ToSlash(rel))
		problems = append(problems, err)
		target := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return os.WriteFile(target, text, 0o644)
	})
	return errors.Join(append(problems, err)...)
}

// isDocument reports whether a file is copied.
func isDocument(name string) bool {
	switch filepath.Ext(name) {
	case ".md", ".txt":
		return true
	}
	return false
}

var links = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// relink changes the links of the document at rel, a path with slashes in from.
func relink(text []byte, revision, from, rel string) ([]byte, error) {
	var problems []error
	text = links.ReplaceAllFunc(text, func(link []byte) []byte {
		target := string(link[2 : len(link)-1])
		file, anchor, _ := strings.Cut(target, "#")
		if file == "" || strings.Contains(file, "://") || strings.HasPrefix(file, "mailto:") {
			return link
		}
		there := path.Join(path.Dir(rel), file)
		if _, err := os.Stat(filepath.Join(from, there)); err != nil {
			problems = append(problems, fmt.Errorf("%s: link to %s: %w", rel, target, err))
			return link
		}
		if isDocument(file) && !strings.HasPrefix(there, "..") {
			return link
		}
		url := site + revision + "/" + path.Join(filepath.Base(from), there)
		if anchor != "" {
			url += "#" + anchor
		}
		return []byte("](" + url + ")")
	})
	return text, errors.Join(problems...)
}
