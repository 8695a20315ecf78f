package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// TestReferences follows every reference to a page, and to a section of one, in pages, code and scripts.
func TestReferences(t *testing.T) {
	problems, followed, err := dangling(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
	if followed < 200 {
		t.Errorf("only %d references were found", followed)
	}
}

func TestDanglingReferencesAreFound(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"README.md": "# Title\n[a](docs/page.md) [b](docs/page.md#two-words) [c](#title) [d](https://example.org/x.md#y)\n" +
			"[gone](docs/gone.md) [section](docs/page.md#three-words) [own](#no-title)\n",
		"docs/page.md": "# Page\n## Two words\n## `Code`, and more\n## Two words\n```sh\n## Three words\n```\n" +
			"[up](../README.md#title) [second](#two-words-1) [code](#code-and-more) ![plot](plot.svg)\n",
		"pkg/a.go":    "package a\n\n// See docs/page.md, docs/page.md#two-words and docs/other/page.md#page.\n// docs/page.md#page-two is gone, and docs/old.md too.\n",
		"pkg/b.go":    "package a // elsewhere.md says why, README.md does not, and neither does docs/page.md#page.\n",
		"scripts/run": "# docs/page.md#page, docs/page.md#nothing\n",
		"bin/felix":   "docs/never.md",
	} {
		name = filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, followed, err := dangling(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"README.md:3: docs/gone.md: no such file",
		"README.md:3: docs/page.md#three-words: no such section",
		"README.md:3: #no-title: no such section",
		"docs/page.md:8: plot.svg: no such file",
		"pkg/a.go:3: docs/other/page.md#page: no such file",
		"pkg/a.go:4: docs/page.md#page-two: no such section",
		"pkg/a.go:4: docs/old.md: no such file",
		"pkg/b.go:1: elsewhere.md: no such file",
		"scripts/run:1: docs/page.md#nothing: no such section",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if followed < len(want) {
		t.Errorf("followed %d references", followed)
	}
}

var (
	// link is the target of a link or an image in a page.
	link = regexp.MustCompile(`\]\(<?([^)\s>]+)`)
	// mention is a page named by its path from the root of the tree, with or without a section.
	mention = regexp.MustCompile(`\bdocs/[\w./-]+\.md(#[\w-]+)?`)
	// plain is a page named without its path, in a comment: one beside the file, or at the root.
	plain   = regexp.MustCompile(`(?:^|[\s("])([\w-]+\.md)\b`)
	comment = regexp.MustCompile(`(?:^|\s)//(.*)`)
	heading = regexp.MustCompile(`^#{1,6}\s+(.*?)\s*$`)
	// bare is a link inside a heading, which counts by its text.
	bare = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// dangling returns the references in the tree whose file or section does not exist, and how many it has followed.
func dangling(tree fs.FS) (problems []string, followed int, err error) {
	pages := map[string]map[string]bool{} // sections of pages that were read
	exists := func(target string) (problem string) {
		file, section, hasSection := strings.Cut(target, "#")
		if file = path.Clean(file); strings.HasPrefix(file, "..") {
			return "outside of the tree"
		}
		if _, err := fs.Stat(tree, file); err != nil {
			return "no such file"
		}
		if !hasSection || path.Ext(file) != ".md" {
			return ""
		}
		if pages[file] == nil {
			text, err := fs.ReadFile(tree, file)
			if err != nil {
				return err.Error()
			}
			pages[file] = sections(string(text))
		}
		if !pages[file][section] {
			return "no such section"
		}
		return ""
	}
	err = fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name == ".git" || name == "bin" || d.Name() == "testdata" || d.Name() == "results" || d.Name() == ".venv"):
			return fs.SkipDir
		case !d.Type().IsRegular() || !mayRefer(name) || strings.HasSuffix(name, "docs/docs_test.go"):
			return nil
		}
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		page := path.Ext(name) == ".md"
		fenced := false
		number := 0
		for line := range strings.Lines(string(text)) {
			number++
			if page && strings.HasPrefix(line, "```") {
				fenced = !fenced
			}
			var found []string // as it is written, and where that leads
			if page && !fenced {
				for _, m := range link.FindAllStringSubmatch(line, -1) {
					switch to := m[1]; {
					case strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:"):
					case strings.HasPrefix(to, "#"):
						found = append(found, to, name+to)
					default:
						found = append(found, to, path.Join(path.Dir(name), to))
					}
				}
				line = link.ReplaceAllString(line, "](")
			}
			for _, to := range mention.FindAllString(line, -1) {
				found = append(found, to, to)
			}
			if m := comment.FindStringSubmatch(line); m != nil && path.Ext(name) == ".go" {
				for _, m := range plain.FindAllStringSubmatch(m[1], -1) {
					to := path.Join(path.Dir(name), m[1])
					if exists(to) != "" {
						to = m[1]
					}
					found = append(found, m[1], to)
				}
			}
			for ref := range slices.Chunk(found, 2) {
				followed++
				if problem := exists(ref[1]); problem != "" {
					problems = append(problems, fmt.Sprintf("%s:%d: %s: %s", name, number, ref[0], problem))
				}
			}
		}
		return nil
	})
	return problems, followed, err
}

// mayRefer reports whether a file is one that people write.
func mayRefer(name string) bool {
	switch path.Ext(name) {
	case "", ".go", ".md", ".sh", ".py", ".yml", ".yaml", ".toml", ".txt", ".service", ".tpl", ".mod":
		return true
	}
	return false
}

// sections returns the anchors of a page's headings, as GitHub makes them.
func sections(text string) map[string]bool {
	anchors := map[string]bool{}
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		m := heading.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if fenced || m == nil {
			continue
		}
		anchor := anchorOf(bare.ReplaceAllString(m[1], "$1"))
		name := anchor
		for n := 1; anchors[name]; n++ {
			name = fmt.Sprintf("%s-%d", anchor, n)
		}
		anchors[name] = true
	}
	return anchors
}

func anchorOf(title string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, title)
}

// TestClientsNamesAreItsOwn: programs that use the client need no other package of the module for what it returns and
// takes, so that those may change.
func TestClientsNamesAreItsOwn(t *testing.T) {
	text, err := os.ReadFile("api/client.txt")
	if err != nil {
		t.Fatal(err)
	}
	others := regexp.MustCompile(`\b(quicx|codec|quic|fanout|cache)\.[A-Z]`)
	for i, line := range strings.Split(string(text), "\n") {
		if others.MatchString(line) {
			t.Errorf("docs/api/client.txt:%d: a type of another package: %s", i+1, line)
		}
	}
}
