package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// What errors mean for a user is decided in this file: exit codes, hints and texts. Begin at [classify].

// Exit codes. exitCodes tells them to users.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitNotFound    = 4
	exitInterrupted = 5
)

const exitCodes = `Exit codes:
  0  done; an interrupt is the ordinary end of sub, cache watch, top and dev without a number to reach
  1  failed, or "felix doctor" has found something, or "felix token inspect" a token that is refused
  2  a flag, an argument, a variable or a configuration file is wrong
  3  the broker cannot be reached, or refuses the token or what it does not allow
  4  there is no such key, stream, cache, context or offset
  5  out of time, or interrupted before the end
A second interrupt ends a command at once, with 128 and the number of the signal.`

// runError is the failure of a command that has begun. What fails before that is a wrong command line.
type runError struct{ error }

func (e runError) Unwrap() error { return e.error }

// usageError is a wrong command line, variable or file that shows only once a command has begun.
type usageError struct {
	error
	hint string // in place of the usual one; may be empty
}

func isUsage(err error) bool {
	_, ok := errors.AsType[usageError](err)
	return ok
}

// usagef makes a usageError.
func usagef(format string, args ...any) error { return usageError{error: fmt.Errorf(format, args...)} }

func (e usageError) Unwrap() error { return e.error }

// mark makes every failure of c and of its subcommands a [runError].
func mark(c *cobra.Command) {
	if do := c.RunE; do != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			if err := do(c, args); err != nil {
				return runError{err}
			}
			return nil
		}
	}
	for _, child := range c.Commands() {
		mark(child)
	}
}

// Failures of this program's own that have exit codes.
var (
	errNotFound    = errors.New("not found")
	errInterrupted = errors.New("interrupted")
)

// connectError is a failure to reach a broker, or its metrics.
type connectError struct {
	error
	addr string
	flag string // that leads elsewhere
}

func (e connectError) Unwrap() error { return e.error }

// Error says what is wrong in the same words whatever part of the attempt has failed.
func (e connectError) Error() string {
	var names x509.HostnameError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var dns *net.DNSError
	var timeout net.Error
	_, refusal := errors.AsType[*client.BrokerError](e.error)
	switch {
	case errors.Is(e.error, errInterrupted), errors.Is(e.error, context.Canceled):
		return errInterrupted.Error()
	case errors.As(e.error, &names):
		return fmt.Sprintf("%s shows a certificate for other names: %v", e.addr, names)
	case errors.As(e.error, &invalid):
		return fmt.Sprintf("%s shows a certificate that is not valid: %v", e.addr, invalid)
	case errors.As(e.error, &unknown):
		return fmt.Sprintf("%s shows a certificate that is not trusted: %v", e.addr, unknown)
	case errors.As(e.error, &dns):
		return fmt.Sprintf("%s: %v", e.addr, dns)
	case errors.Is(e.error, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens at %s", e.addr)
	case refusal:
		return e.error.Error()
	case errors.Is(e.error, context.DeadlineExceeded), errors.As(e.error, &timeout) && timeout.Timeout():
		return fmt.Sprintf("no answer from %s", e.addr)
	}
	return e.error.Error()
}

// hint says what may be done about it.
func (e connectError) hint() string {
	var names x509.HostnameError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(e.error, &names):
		return e.flag + " has to be one of these names"
	case errors.As(e.error, &invalid):
		return `does this machine's clock go right? "felix dev" and "felix dev cert" make another certificate`
	case errors.As(e.error, &unknown):
		return `--ca names a file with the authority to trust, such as ca.pem of "felix dev"; "felix config show" shows which one is used`
	case e.flag == flagMetricsURL:
		return fmt.Sprintf(`is a broker running at %s? --metrics-url leads to the metrics of another; "felix config show" shows where the URL comes from`, e.addr)
	}
	return fmt.Sprintf(`is a broker running at %s? "felix dev" starts one, --addr leads to another, and "felix config show" shows where the address comes from`, e.addr)
}

// Flags that lead to a broker.
const (
	flagAddr       = "--addr"
	flagMetricsURL = "--metrics-url"
)

// outputError is a failure to write what a command is for. It counts even if the command was interrupted.
type outputError struct{ error }

func (e outputError) Unwrap() error { return e.error }

func isOutputError(err error) bool {
	_, ok := errors.AsType[outputError](err)
	return ok
}

// asOutput makes err an [outputError], if it is one.
func asOutput(err error) error {
	if err != nil {
		err = outputError{err}
	}
	return err
}

// hintAuth is about a token that the broker does not accept.
const hintAuth = `is the token for this broker and tenant, and not expired? --token or --token-file gives another, --tenant another tenant; ` +
	`"felix token inspect" shows what it says`

// classify returns the exit code of a failure, and what may be done about it.
func classify(ctx context.Context, err error) (code int, hint string) {
	if usage, ok := errors.AsType[usageError](err); ok {
		return exitUsage, usage.hint
	}
	if _, begun := errors.AsType[runError](err); !begun {
		return exitUsage, ""
	}
	if isOutputError(err) {
		return exitError, ""
	}
	if ctx.Err() != nil {
		return exitInterrupted, ""
	}
	if errors.Is(err, client.ErrAuth) {
		return exitUnreachable, hintAuth
	}
	if connect, ok := errors.AsType[connectError](err); ok {
		return exitUnreachable, connect.hint()
	}
	if refusal, ok := errors.AsType[*client.BrokerError](err); ok {
		return classifyRefusal(refusal.Message)
	}
	if _, ok := errors.AsType[*client.CursorError](err); ok {
		return exitNotFound, "--from earliest begins with the oldest event that there is"
	}
	switch {
	case errors.Is(err, client.ErrMiss), errors.Is(err, errNotFound):
		return exitNotFound, ""
	case errors.Is(err, client.ErrFrameTooLarge):
		return exitError, "FELIX_MAX_FRAME_BYTES raises the limit of this program, and max_frame_bytes that of the broker"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, client.ErrTimeout):
		return exitInterrupted, "--timeout allows more time"
	case errors.Is(err, client.ErrDisconnected), errors.Is(err, client.ErrEnded):
		return exitUnreachable, ""
	}
	return exitError, ""
}

// classifyRefusal returns the same for what a broker says.
func classifyRefusal(text string) (code int, hint string) {
	switch codec.CodeOf(text) {
	case codec.CodeNotFound:
		if strings.HasPrefix(text, "cache ") {
			return exitNotFound, `caches are made by the broker: "felix dev --cache NAME", or its catalog`
		}
		return exitNotFound, `streams are made by the broker: "felix dev --stream NAME", or its catalog`
	case codec.CodeUnauthenticated:
		return exitUnreachable, hintAuth
	case codec.CodeForbidden:
		return exitUnreachable, `the token does not allow this: --token or --token-file gives another; "felix token inspect" shows what it allows`
	default:
		return exitError, ""
	}
}

// packageNames are in front of errors of this module's packages. They are of no use to users of a command. dev is one
// of these commands too.
var packageNames = regexp.MustCompile(`(^|[\s(])(?:auth|broker|catalog|client|loadgen|logs|ops|quicx|settings): |(^|: )dev: `)

// plain is the text of an error for a terminal: without names of packages, and with everything escaped that a
// terminal could take for more than text.
func plain(err error) string {
	text := err.Error()
	for _, peer := range peerTexts(err) {
		text = strings.ReplaceAll(text, peer, escape(peer))
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = escape(line)
	}
	text = strings.Join(lines, "\n")
	for packageNames.MatchString(text) { // one name can follow another
		text = packageNames.ReplaceAllString(text, "$1$2")
	}
	return text
}

// peerTexts are the parts of an error's text that a peer has written. A line of theirs must not look like one of this
// program.
func peerTexts(err error) (texts []string) {
	switch e := err.(type) { //nolint:errorlint // the tree is walked here
	case nil:
		return nil
	case *client.BrokerError:
		texts = append(texts, e.Message)
	case *quicx.ConnClosedError:
		if e.Reason != "" {
			texts = append(texts, e.Reason)
		}
	}
	switch e := err.(type) { //nolint:errorlint // the tree is walked here
	case interface{ Unwrap() error }:
		texts = append(texts, peerTexts(e.Unwrap())...)
	case interface{ Unwrap() []error }:
		for _, child := range e.Unwrap() {
			texts = append(texts, peerTexts(child)...)
		}
	}
	return texts
}

// escape writes what is not printable in the form of a Go string: control characters, line ends, marks that change
// the direction of text, and bytes that are not UTF-8.
func escape(text string) string {
	if isPrintable(text) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		if r == utf8.RuneError && n <= 1 {
			fmt.Fprintf(&b, `\x%02x`, text[0])
		} else if unicode.IsPrint(r) {
			b.WriteString(text[:n])
		} else {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[n:]
	}
	return b.String()
}

// isPrintable reports whether a terminal shows the text and does nothing else with it.
func isPrintable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}

// isBrokenPipe reports whether the reader of the output has gone.
func isBrokenPipe(err error) bool {
	return isOutputError(err) && errors.Is(err, syscall.EPIPE)
}

// dieOfBrokenPipe ends the process as a write to a closed pipe does if nobody handles it. It returns if w is no pipe
// of the process.
func dieOfBrokenPipe(w io.Writer) {
	signal.Reset(syscall.SIGPIPE)
	if f, ok := w.(*os.File); ok {
		_, _ = f.Write([]byte{'\n'})
	}
}
