package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/go-jose/go-jose/v4/json" // which takes member names as they are written, as brokers do
	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/dev"
)

func (a *app) newToken() *cobra.Command {
	return group("token", "Look into tokens, and make them", a.newTokenInspect(), a.newTokenMint())
}

// tokenInfo is what a token says.
type tokenInfo struct {
	KeyID       string    `json:"kid"`
	Tenant      string    `json:"tenant"`
	Subject     string    `json:"subject"`
	IssuedAt    time.Time `json:"issued_at"`
	Expires     time.Time `json:"expires"`
	Permissions []string  `json:"permissions"`
	Signature   string    `json:"signature"` // "not verified", "verified" or "refused"
	Expired     bool      `json:"expired"`
}

// refuseExpired is the error of an expired token that brokers refuse, and nil while they allow for their clocks.
func (i tokenInfo) refuseExpired(errOut io.Writer) error {
	until := i.Expires.Add(auth.Leeway)
	if time.Now().Before(until) {
		fmt.Fprintf(errOut, "the token has expired; brokers still accept it until %s\n", until.Format(time.RFC3339))
		return nil
	}
	return fmt.Errorf("the token has expired: brokers refuse it since %s", until.Format(time.RFC3339))
}

func (a *app) newTokenInspect() *cobra.Command {
	format := formatTable
	var jwks string
	c := &cobra.Command{
		Use:   "inspect [TOKEN]",
		Short: "Show what a token says",
		Long: `Show what a token says: the argument, one on the standard input if the argument is "-", or the one that commands use.

Its signature is verified only with --jwks. Exit code 1 says that a broker, with these keys if there are any, would
refuse the token: it has expired, for instance. Brokers accept a token for 60 seconds after it has expired, to allow
for their clocks.`,
		Args: arguments(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			token, err := a.tokenToInspect(c, args)
			if err != nil {
				return err
			}
			info, err := inspect(token)
			if err != nil {
				return err
			}
			var refused error
			if jwks != "" {
				info.Signature = "verified"
				if refused, err = verify(c, info.Tenant, token, jwks); err != nil {
					return err
				}
				if refused != nil {
					info.Signature = "refused"
				}
			}
			if info.Expired = info.Expires.Before(time.Now()); info.Expired && refused == nil {
				refused = info.refuseExpired(c.ErrOrStderr())
			}
			return errors.Join(info.print(c.OutOrStdout(), format), refused)
		},
	}
	c.Flags().StringVar(&jwks, "jwks", "", "verify with the keys of this `file` (JSON Web Key Set)")
	format.bind(c)
	return c
}

func (a *app) tokenToInspect(c *cobra.Command, args []string) (string, error) {
	if len(args) > 0 && args[0] != "-" {
		return args[0], nil
	}
	if len(args) > 0 {
		text, err := readAll(c.Context(), c.InOrStdin(), auth.MaxTokenLen, "the token", c.ErrOrStderr())
		return strings.TrimSpace(string(text)), err
	}
	r, err := a.resolve()
	if err != nil {
		return "", err
	}
	token, err := r.readToken()
	if err == nil && token == "" {
		err = fmt.Errorf("no token is configured: %w", errNotFound)
	}
	return token, err
}

// verify says why a broker would refuse the token, or that the keys cannot be read.
func verify(c *cobra.Command, tenant, token, file string) (refused, err error) {
	doc, err := os.ReadFile(file)
	if err != nil {
		return nil, usageError{error: err}
	}
	keys, err := auth.ParseJWKS(doc)
	if err != nil {
		return nil, usageError{error: fmt.Errorf("%s: %w", file, err)}
	}
	_, refused = auth.NewVerifier(auth.StaticKeys{tenant: keys}, nil).Verify(c.Context(), tenant, token)
	return refused, nil
}

// inspect reads a token without verifying anything.
func inspect(token string) (tokenInfo, error) {
	info := tokenInfo{Signature: "not verified"}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return info, errors.New("not a token: it has three parts with dots between them")
	}
	var header struct {
		KeyID string `json:"kid"`
	}
	var claims struct {
		Tenant      string   `json:"tid"`
		Subject     string   `json:"sub"`
		IssuedAt    int64    `json:"iat"`
		Expires     int64    `json:"exp"`
		Permissions []string `json:"perms"`
	}
	for i, into := range []any{&header, &claims} {
		text, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(text, into)
		}
		if err != nil {
			return info, fmt.Errorf("not a token: part %d: %w", i+1, err)
		}
	}
	info.KeyID, info.Tenant, info.Subject, info.Permissions = header.KeyID, claims.Tenant, claims.Subject, claims.Permissions
	info.IssuedAt, info.Expires = time.Unix(claims.IssuedAt, 0).UTC(), time.Unix(claims.Expires, 0).UTC()
	return info, nil
}

func (i tokenInfo) print(w io.Writer, f format) error {
	if f != formatTable {
		return printJSON(w, f, i)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "tenant\t%s\nsubject\t%s\nkey\t%s\n", escape(i.Tenant), escape(i.Subject), escape(i.KeyID))
	fmt.Fprintf(t, "issued\t%s\t%s\n", i.IssuedAt.Format(time.RFC3339), humanize.Time(i.IssuedAt))
	expires := "expires"
	if i.Expired {
		expires = "EXPIRED"
	}
	fmt.Fprintf(t, expires+"\t%s\t%s\n", i.Expires.Format(time.RFC3339), humanize.Time(i.Expires))
	fmt.Fprintf(t, "signature\t%s\n", i.Signature)
	for _, p := range i.Permissions {
		fmt.Fprintf(t, "may\t%s\n", escape(p))
	}
	return asOutput(t.Flush())
}

func (a *app) newTokenMint() *cobra.Command {
	var key, kid, subject string
	var life time.Duration
	var allow []string
	var jwks bool
	c := &cobra.Command{
		Use:   "mint --key FILE --allow PERMISSION",
		Short: "Make a token with a private key",
		Long: `Make a token, signed with a private key (Ed25519, PKCS #8, PEM), and print it. "felix dev --dir" keeps such a key.

A permission is ACTION:KIND:TENANT/NAMESPACE/NAME with * for any run of characters. Actions: stream.publish,
stream.subscribe, cache.read, cache.write.`,
		Example: `  felix token mint --key dev/signing-key.pem --allow 'stream.subscribe:stream:t1/*'
  felix token mint --key key.pem --kid k1 --jwks > keys.json    # what a broker verifies with`,
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case key == "":
				return usageError{error: errors.New("--key is needed: it names the file of the private key")}
			case len(allow) == 0 && !jwks:
				return usageError{error: errors.New("--allow is needed, or --jwks")}
			case life <= 0:
				return usageError{error: errors.New("--lifetime is more than 0")}
			}
			private, err := dev.ReadKey(key)
			if err != nil {
				return usageError{error: fmt.Errorf("--key: %w", err)}
			}
			signer, err := auth.NewSigner(private, kid)
			if err != nil {
				return usageError{error: err}
			}
			if jwks {
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", bytes.TrimSpace(signer.JWKS()))
				return asOutput(err)
			}
			r, err := a.resolve()
			if err != nil {
				return err
			}
			now := time.Now()
			token, err := signer.Mint(auth.Claims{
				Tenant: r.Tenant, Subject: subject, IssuedAt: now, Expires: now.Add(life), Permissions: allow,
			})
			if err != nil {
				return usageError{error: err}
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), token)
			return asOutput(err)
		},
	}
	f := c.Flags()
	f.StringVar(&key, "key", "", "PEM `file` of the private key")
	f.StringVar(&kid, "kid", broker.DevKeyID, "`id` of the key")
	f.StringVar(&subject, "subject", "felix", "who the token is for")
	f.DurationVar(&life, "lifetime", auth.TokenLifetime, "time until it expires")
	f.StringArrayVar(&allow, "allow", nil, "`permission`; may be given several times")
	f.BoolVar(&jwks, "jwks", false, "print the key set that verifies such tokens instead")
	return c
}
