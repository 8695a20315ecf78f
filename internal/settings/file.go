package settings

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/felix-mq/felix/internal/readfile"
)

// Node is a place in a YAML file.
type Node = yaml.Node

// MaxFileBytes bounds the files that are read, with package readfile.
const MaxFileBytes = 64 << 20

// File is a YAML file that is being read. It collects every problem in it, with its line.
type File struct {
	name     string
	problems []filed
}

type filed struct {
	line    int
	problem *PlaceError
}

// Parse returns the one document in text, or nil if it is empty or cannot be parsed; [File.Err] tells. name is for
// messages.
func Parse(name string, text []byte) (*File, *Node) {
	f := &File{name: name}
	var doc, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return f, nil
	case err != nil:
		f.problem(0, "", err)
		return f, nil
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		f.problem(more.Line, "", errors.New("only one document may be in a file"))
	}
	if len(doc.Content) == 0 {
		return f, nil
	}
	return f, doc.Content[0]
}

// Problem reports what is wrong at a node. key names the node and those above it.
func (f *File) Problem(n *Node, key string, err error) { f.problem(n.Line, key, err) }

func (f *File) problem(line int, key string, err error) {
	where := f.name
	if line > 0 {
		where = fmt.Sprintf("%s:%d", f.name, line)
	}
	f.problems = append(f.problems, filed{line, &PlaceError{where, key, err}})
}

// Err returns all problems, in the order of their lines, or nil.
func (f *File) Err() error {
	slices.SortStableFunc(f.problems, func(a, b filed) int { return cmp.Compare(a.line, b.line) })
	errs := make([]error, 0, len(f.problems))
	for _, p := range f.problems {
		errs = append(errs, p.problem)
	}
	return errors.Join(errs...)
}

// Member is one entry of a mapping.
type Member struct {
	Key   string
	Name  *Node
	Value *Node
}

// Members returns the entries of a mapping, in their order. What is no mapping, a key that is no text or stands twice,
// and aliases are problems. key names n.
func (f *File) Members(n *Node, key string) (members []Member) {
	if n.Kind != yaml.MappingNode {
		f.Problem(n, key, fmt.Errorf("want keys and values, not %s", kind(n)))
		return nil
	}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch first, twice := seen[k.Value]; {
		case k.Kind != yaml.ScalarNode:
			f.Problem(k, key, fmt.Errorf("a key must be a word, not %s", kind(k)))
		case twice:
			f.Problem(k, Join(key, k.Value), fmt.Errorf("stands twice; first in line %d", first))
		case v.Kind == yaml.AliasNode:
			f.Problem(v, Join(key, k.Value), errors.New("aliases are not read"))
		default:
			seen[k.Value] = k.Line
			members = append(members, Member{k.Value, k, v})
		}
	}
	return members
}

// Unknown reports a member whose key is none of known.
func (f *File) Unknown(m Member, key string, known []string) {
	f.Problem(m.Name, Join(key, m.Key), errors.New("unknown key"+nearest(m.Key, known)))
}

// Decode reads a mapping into the struct that dst points to. key names n.
func (f *File) Decode(n *Node, key string, dst any) {
	l := Loaded{Settings: Describe(dst)}
	for _, m := range f.Members(n, key) {
		s := l.find(m.Key)
		if s == nil {
			f.Unknown(m, key, l.keys())
			continue
		}
		values, list, err := scalars(m.Value)
		if err == nil {
			err = s.set(values, list)
		}
		if err != nil {
			f.Problem(m.Value, Join(key, m.Key), err)
		}
	}
}

// Text returns the text of a node that must hold one.
func (f *File) Text(n *Node, key string) string {
	values, list, err := scalars(n)
	switch {
	case err != nil:
		f.Problem(n, key, err)
	case list:
		f.Problem(n, key, errors.New("want one value, not a list"))
	default:
		return values[0]
	}
	return ""
}

// Join names a key inside another.
func Join(key, inner string) string {
	if key == "" {
		return inner
	}
	return key + "." + inner
}

func scalars(n *Node) (values []string, list bool, err error) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return nil, false, errors.New("has no value")
	case n.Kind == yaml.ScalarNode:
		return []string{n.Value}, false, nil
	case n.Kind == yaml.SequenceNode:
		for _, c := range n.Content {
			if c.Kind != yaml.ScalarNode {
				return nil, true, fmt.Errorf("want words in the list, not %s", kind(c))
			}
			values = append(values, c.Value)
		}
		return values, true, nil
	}
	return nil, false, fmt.Errorf("want a value, not %s", kind(n))
}

func kind(n *Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	case yaml.ScalarNode, yaml.DocumentNode:
	}
	return "a single value"
}

// readFile returns the layer of the file.
func (l *Loaded) readFile(src Sources) (*File, layer) {
	f := &File{name: src.File}
	if src.File == "" {
		return f, nil
	}
	text, err := readfile.Read(context.Background(), src.File, MaxFileBytes)
	if err != nil {
		f.problem(0, "", err)
		return f, nil
	}
	f, root := Parse(src.File, text)
	if root == nil {
		return f, nil
	}
	out := make(layer)
	for _, m := range f.Members(root, "") {
		where := fmt.Sprintf("%s:%d", src.File, m.Name.Line)
		dead := slices.IndexFunc(src.WithoutEffect, func(w WithoutEffect) bool { return w.Key == m.Key && w.Key != "" })
		switch {
		case l.find(m.Key) != nil:
			values, list, err := scalars(m.Value)
			if err != nil {
				f.Problem(m.Value, m.Key, err)
				continue
			}
			out[m.Key] = given{values: values, list: list, name: m.Key, origin: where, node: m.Value}
		case dead >= 0:
			l.Ignored = append(l.Ignored, Notice{where, m.Key, src.WithoutEffect[dead].Why})
		default:
			f.Unknown(m, "", l.keys())
		}
	}
	return f, out
}

// Dump writes all settings as a file that [Load] reads, with the origin of each as a comment. Secrets are left out, and
// what has no value.
func (l *Loaded) Dump(w io.Writer) error {
	doc := &Node{Kind: yaml.MappingNode}
	for _, s := range l.Settings {
		if s.Secret && s.Text() != "" {
			doc.FootComment += "# " + s.Key + ": (secret) # " + s.Origin + "\n"
			continue
		}
		if s.value.Kind() == reflect.Pointer && s.value.IsNil() {
			continue
		}
		var value *Node
		switch v := s.value.Interface().(type) {
		case []string:
			value = &Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
			for _, text := range v {
				value.Content = append(value.Content, quoted(text))
			}
		case string:
			value = quoted(v)
		default:
			value = &Node{Kind: yaml.ScalarNode, Value: s.Text()}
		}
		value.LineComment = s.Origin
		doc.Content = append(doc.Content, &Node{Kind: yaml.ScalarNode, Value: s.Key}, value)
	}
	enc := yaml.NewEncoder(w)
	if err := enc.Encode(doc); err != nil {
		return err
	}
	return enc.Close()
}

func quoted(text string) *Node {
	return &Node{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle, Value: text}
}
