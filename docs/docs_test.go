package docs_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"
	"unicode/utf8"
)

// TestReferences follows every reference to a page, and to a section of one, in pages, code and scripts.
func TestReferences(t *testing.T) {
	problems, followed, err := dangling(os.DirFS(".."))
	if err != nil {
		t.Fatal(err)
	}
	wantNone(t, problems, followed, 200)
}

// wantNone fails for each problem, and if so little was looked at that finding none says nothing.
func wantNone(t *testing.T, problems []string, looked, least int) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
	if looked < least {
		t.Errorf("looked at %d, want at least %d", looked, least)
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
	// plain is a page named without its path, in a comment: one in the file's directory, or at the root.
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

// plainPaths are the files and directories whose words are checked. Add a directory as soon as it has no findings.
var plainPaths = []string{
	".ci", ".github", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "README.md", "SECURITY.md", "auth", "benchmarks", "broker", "cache", "catalog",
	"client", "cmd", "codec", "conformance", "deploy", "docs", "fanout", "internal", "loadgen", "profiles", "quicx", "reliability", "ring", "storage", "telemetry",
	"testvectors", "tools",
}

// anyWords are pages that are not checked: the glossary lists the idioms.
var anyWords = []string{"docs/design/glossary.md"}

// TestPlainWords finds idioms that the glossary replaces, and comments in Go files that are too wide.
func TestPlainWords(t *testing.T) {
	problems, checked, err := unplain(os.DirFS(".."), plainPaths, anyWords)
	if err != nil {
		t.Fatal(err)
	}
	wantNone(t, problems, checked, 20)
}

func TestUnplainWordsAreFound(t *testing.T) {
	wide := strings.Repeat("w", 115)
	for _, c := range []struct {
		name, file, text string
		want             []string
	}{
		{"plain page", "a.md", "The queue is full. In turns, besides, mushrooms: all fine.\n", nil},
		{"each idiom", "a.md", "no room\nit is told\nwhat becomes of it\nin turn\nanew\nbeside\nwhoever\nbehind\nof ours\n", []string{
			`a.md:1: "room"`, `a.md:2: "is told"`, `a.md:3: "becomes of"`, `a.md:4: "in turn"`, `a.md:5: "anew"`,
			`a.md:6: "beside"`, `a.md:7: "whoever"`, `a.md:8: "behind"`, `a.md:9: "of ours"`,
		}},
		{"two in a line", "a.md", "Room behind.\n", []string{`a.md:1: "Room"`, `a.md:1: "behind"`}},
		{"across lines", "a.md", "x\nwhat becomes\n  of it\n", []string{`a.md:2: "becomes of"`}},
		{"across paragraphs", "a.md", "that it is\n\ntold stories\n", nil},
		{"table and heading", "a.md", "## Beside\n| a | room |\n", []string{`a.md:1: "Beside"`, `a.md:2: "room"`}},
		{"code block", "a.md", "```sh\necho room\n```\n- x\n  ```\n  room\n  ```\nanew\n", []string{`a.md:8: "anew"`}},
		{"link and anchor", "a.md", "<a id=\"no-room\"></a>\n[x](b.md#no-room) [room](c.md)\n", []string{`a.md:2: "room"`}},
		{"results", "a.md", "<!-- results: b.md -->\nroom\n<!-- end of results -->\nanew\n", []string{`a.md:4: "anew"`}},
		{"generated page", "a.md", "# A\n\n<!-- Generated from b. Do not edit. -->\n\nroom\n", nil},

		{"plain code", "a.go", "// Package a has space.\npackage a\n\nconst room = `behind // anew`\n", nil},
		{"comments", "a.go", "// Package a has room.\npackage a\n\nvar b int // behind\n\n/* c\nanew */\n", []string{
			`a.go:1: "room"`, `a.go:4: "behind"`, `a.go:7: "anew"`,
		}},
		{"comment across lines", "a.go", "package a\n\nfunc b() {\n\t// It is\n\t// told.\n}\n", []string{`a.go:4: "is told"`}},
		{"comments apart", "a.go", "package a\n\n// It is\nvar b int\n\n// told.\n", nil},
		{"generated code", "a.go", "// Code generated by b. DO NOT EDIT.\n\n// Package a has room.\npackage a\n", nil},
		{"120 columns", "a.go", "package a\n\n// ü" + wide + "\n// ü" + wide + "x\n", nil},
		{"121 columns", "a.go", "package a\n\n// ü" + wide + "xx\n", []string{"a.go:3: 121 columns"}},
		{"tabs", "a.go", "package a\n\nfunc b() {\n\t// " + wide + "\n}\n", []string{"a.go:4: 122 columns"}},
		{"wide code", "a.go", "package a\n\nvar b = `" + wide + wide + "` // c\n", nil},
		{"wide directive", "a.go", "package a\n\n//go:generate " + wide + "\n", nil},

		{"Makefile", "Makefile", "a: ## Print it beside b\n# what becomes\n# of it\n", []string{`Makefile:1: "beside"`, `Makefile:2: "becomes of"`}},
		{"script", ".ci/run", "# In turn.\n", []string{`.ci/run:1: "In turn"`}},
		{"another kind of file", "a.json", "room\n", nil},
		{"test data", "testdata/a.md", "room\n", nil},
		{"exception", "any.md", "room\n", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, _, err := unplain(fstest.MapFS{c.file: {Data: []byte(c.text)}}, []string{"."}, []string{"any.md"})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
	if _, _, err := unplain(fstest.MapFS{}, []string{"gone"}, nil); err == nil {
		t.Error("a path that does not exist is not noticed")
	}
}

// maxComment is the width of a comment line, with four columns for each tab. golangci-lint does not look at it.
const maxComment = 120

var (
	// idiom is what docs/design/glossary.md replaces. A line may end inside of it.
	idiom = regexp.MustCompile(strings.ReplaceAll(
		`(?i)\b(?:room|is told|becomes of|in turn|anew|beside|whoever|behind|of ours)\b`, " ", `[ \t]*[ \t\n][ \t]*`))
	generatedPage = regexp.MustCompile(`(?m)^<!-- Generated\b`)
	// resultsBegin and resultsEnd enclose what a program has written into a page.
	resultsBegin = regexp.MustCompile(`^<!-- (results|isolation)\b`)
	resultsEnd   = regexp.MustCompile(`^<!-- end of (results|isolation)\b`)
	anchorTag    = regexp.MustCompile(`<a id="[^"]*">`)
)

// unplain returns the idioms and the wide comments below paths, and how many files it has checked.
func unplain(tree fs.FS, paths, except []string) (problems []string, checked int, err error) {
	for _, root := range paths {
		err := fs.WalkDir(tree, root, func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && (name == ".git" || name == "bin" || slices.Contains([]string{"testdata", "results", "vendor", ".venv"}, d.Name())):
				return fs.SkipDir
			case !d.Type().IsRegular() || slices.Contains(except, name):
				return nil
			}
			b, err := fs.ReadFile(tree, name)
			if err != nil {
				return err
			}
			text, prose := string(b), ""
			switch {
			case path.Ext(name) == ".md":
				prose = proseOfPage(text)
			case path.Ext(name) == ".go":
				var wide []string
				if prose, wide, err = comments(name, text); err != nil {
					return err
				}
				problems = append(problems, wide...)
			case path.Base(name) == "Makefile" || path.Dir(name) == ".ci":
				prose = proseOfScript(text)
			default:
				return nil
			}
			checked++
			for _, at := range idiom.FindAllStringIndex(prose, -1) {
				line := 1 + strings.Count(prose[:at[0]], "\n")
				problems = append(problems, fmt.Sprintf("%s:%d: %q", name, line, strings.Join(strings.Fields(prose[at[0]:at[1]]), " ")))
			}
			return nil
		})
		if err != nil {
			return problems, checked, err
		}
	}
	return problems, checked, nil
}

// proseOfPage returns a page without code blocks, results and targets of links. It has the lines of the page.
func proseOfPage(text string) string {
	if generatedPage.MatchString(text) {
		return ""
	}
	var b strings.Builder
	fenced, results := false, false
	for line := range strings.Lines(text) {
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		if fence {
			fenced = !fenced
		}
		results = !resultsEnd.MatchString(line) && (results || resultsBegin.MatchString(line))
		if !fence && !fenced && !results {
			line = anchorTag.ReplaceAllString(link.ReplaceAllString(line, "]("), "<a>")
			b.WriteString(strings.TrimSuffix(line, "\n"))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// proseOfScript returns a file without the signs of its comments.
func proseOfScript(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimLeft(line, "# \t"))
	}
	return b.String()
}

// comments returns the comments of a Go file, each in its line, and which lines with nothing but comment are too wide.
func comments(name, text string) (prose string, wide []string, err error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil || ast.IsGenerated(file) {
		return "", nil, err
	}
	source := strings.Split(text, "\n")
	lines := make([]string, len(source))
	for _, group := range file.Comments {
		for _, c := range group.List {
			at := set.PositionFor(c.Pos(), false)
			alone := strings.TrimSpace(source[at.Line-1][:at.Column-1]) == "" && !strings.HasPrefix(c.Text, "//go:")
			for i, line := range strings.Split(strings.TrimPrefix(c.Text, "//"), "\n") {
				n := at.Line - 1 + i
				lines[n] += line
				width := utf8.RuneCountInString(source[n]) + 3*strings.Count(source[n], "\t")
				if alone && width > maxComment {
					wide = append(wide, fmt.Sprintf("%s:%d: %d columns", name, n+1, width))
				}
			}
		}
	}
	return strings.Join(lines, "\n"), wide, nil
}
