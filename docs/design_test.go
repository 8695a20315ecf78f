package docs_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// TestDesignNames holds the names of the design page against the sources: a page that a newcomer reads first must not
// lead to what is gone.
func TestDesignNames(t *testing.T) {
	tree := os.DirFS("..")
	page, err := fs.ReadFile(tree, "docs/design/README.md")
	if err != nil {
		t.Fatal(err)
	}
	declared, err := declarations(tree)
	if err != nil {
		t.Fatal(err)
	}
	problems, checked := unknownNames(tree, declared, string(page))
	wantNone(t, problems, checked, 150)
}

func TestUnknownNamesAreFound(t *testing.T) {
	tree := fstest.MapFS{
		"broker/a.go":      {Data: []byte("package broker\n\ntype Conn struct{ mu int }\n\nfunc (c *Conn) Close() {}\n\nfunc serveControl() {}\n\nconst Max = 1\n")},
		"broker/a_test.go": {Data: []byte("package broker\n\nfunc TestGone() {}\n")},
	}
	declared, err := declarations(tree)
	if err != nil {
		t.Fatal(err)
	}
	got, checked := unknownNames(tree, declared, "`broker/a.go` `Conn.mu` `broker.Conn.Close` `serveControl` `broker` `drop_new` `FELIX_X` `a b` `Max`\n"+
		"`broker/b.go` `Conn.gone` `broker.Gone` `serveGone` `TestGone`\n```\n`fencedGone`\n```\n")
	want := []string{"line 2: broker/b.go", "line 2: Conn.gone", "line 2: broker.Gone", "line 2: serveGone", "line 2: TestGone"}
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	if checked != 10 {
		t.Errorf("checked %d names, want 10", checked)
	}
}

// declarations returns what the Go files declare, tests aside: for each package and each type the names of its members,
// and for "" all of them.
func declarations(tree fs.FS) (map[string]map[string]bool, error) {
	all := map[string]map[string]bool{}
	add := func(of, name string) {
		for _, of := range []string{of, ""} {
			if all[of] == nil {
				all[of] = map[string]bool{}
			}
			all[of][name] = true
		}
	}
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "bin", "dist", "testdata", ".venv"}, d.Name()):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		add("", file.Name.Name)
		for _, decl := range file.Decls {
			declare(add, file.Name.Name, decl)
		}
		return nil
	})
	return all, err
}

// declare adds what one declaration of a package declares.
func declare(add func(of, name string), pkg string, decl ast.Decl) {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			add(pkg, d.Name.Name)
			return
		}
		ast.Inspect(d.Recv.List[0].Type, func(n ast.Node) bool {
			id, ok := n.(*ast.Ident)
			if ok {
				add(id.Name, d.Name.Name)
			}
			return !ok
		})
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.ValueSpec:
				for _, name := range s.Names {
					add(pkg, name.Name)
				}
			case *ast.TypeSpec:
				add(pkg, s.Name.Name)
				ast.Inspect(s.Type, func(n ast.Node) bool {
					if f, ok := n.(*ast.Field); ok {
						for _, name := range f.Names {
							add(s.Name.Name, name.Name)
						}
					}
					return true
				})
			}
		}
	}
}

var (
	quoted = regexp.MustCompile("`([^`\n]+)`")
	// goFile is a path of a Go file, and goName an identifier, perhaps of a package or a type.
	goFile = regexp.MustCompile(`^[\w./-]+\.go$`)
	goName = regexp.MustCompile(`^\w+(\.\w+)*$`)
	// plainName is what may be a setting, a metric, a value or a word instead.
	plainName = regexp.MustCompile(`^([a-z0-9_]+|[A-Z0-9_]+)$`)
)

// unknownNames returns the files and identifiers in backquotes of a page that do not exist, and how many it has looked
// up.
func unknownNames(tree fs.FS, declared map[string]map[string]bool, page string) (problems []string, checked int) {
	fenced, number := false, 0
	for line := range strings.Lines(page) {
		number++
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		}
		if fenced {
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			known := false
			switch name := m[1]; {
			case goFile.MatchString(name):
				_, err := fs.Stat(tree, name)
				known = err == nil
			case goName.MatchString(name) && !plainName.MatchString(name):
				parts := strings.Split(name, ".")
				known = declared[""][parts[0]]
				for i := 1; i < len(parts); i++ {
					known = known && declared[parts[i-1]][parts[i]]
				}
			default:
				continue
			}
			checked++
			if !known {
				problems = append(problems, fmt.Sprintf("line %d: %s", number, m[1]))
			}
		}
	}
	return problems, checked
}
