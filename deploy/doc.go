// Package deploy has no code but that of package/docs, which makes the documents of a package: its tests build the
// packages next to it, install and run them, render the chart, and compare all of it with what the broker knows. It is
// a module of its own, so that users of the library inherit neither Helm nor nfpm. docs/operate/deployment.md says what
// is what.
package deploy
