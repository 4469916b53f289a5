package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-registry/weir/registry/account"
	"github.com/weir-registry/weir/registry/ops"
)

// tokenVariable is the environment variable with an administrator's token.
const tokenVariable = "WEIR_ADMIN_TOKEN"

// maxAnswer bounds an answer of the admin API, in bytes: a list may be long.
const maxAnswer = 256 << 20

// adminFlags are what all commands about accounts have.
type adminFlags struct{ config, data, token, output string }

func (f *adminFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "configuration file of the node with the accounts")
	cmd.Flags().StringVar(&f.data, "data", "", "data directory, instead of the configuration's")
	cmd.Flags().StringVar(&f.token, "token", "", "an administrator's token, instead of $"+tokenVariable+" or DATA/"+account.AdminFile)
	cmd.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
}

// An adminClient asks the admin API of a running node.
type adminClient struct {
	c      *Config
	flags  string // -c and --data as they were given, for commands that are printed to be pasted
	token  string
	source string // where the token is from, for people: "in FILE"
	output string
	stdout io.Writer
	stderr io.Writer
}

// open reads the configuration and finds the token.
func (f *adminFlags) open(cmd *cobra.Command) (*adminClient, error) {
	if f.output != "text" && f.output != "json" {
		return nil, usageError{fmt.Errorf("-o %s: neither text nor json", f.output)}
	}
	c, err := readConfig(f.config)
	if err != nil {
		return nil, err
	}
	if f.data != "" {
		c.Data = f.data
	}
	if len(c.Next) > 0 {
		return nil, fmt.Errorf("the accounts are not on this node but behind it: run this on the node with the metadata database, which has no next in its configuration; behind this one is %s", strings.Join(nodes(c.Next), ", "))
	}
	if c.Ops == opsOff {
		return nil, errors.New("ops is off in the configuration, and accounts are administered at that address: give it one and start weir again")
	}
	a := &adminClient{c: c, output: f.output, token: f.token, source: "that --token gives", stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr()}
	for _, given := range [][2]string{{" -c ", f.config}, {" --data ", f.data}} {
		if given[1] != "" {
			a.flags += given[0] + given[1]
		}
	}
	if a.token == "" {
		a.token, a.source = os.Getenv(tokenVariable), "in $"+tokenVariable
	}
	if a.token == "" {
		file := filepath.Join(c.Data, account.AdminFile)
		text, err := os.ReadFile(file)
		switch {
		case errors.Is(err, os.ErrNotExist):
			if why := databaseTrouble(cmd.Context(), c); why != "" {
				return nil, fmt.Errorf("there is no administrator's token in the data directory yet: %s", why)
			}
			return nil, fmt.Errorf("there is no administrator's token: %s is not there; the node with the accounts makes it in its data directory when it starts, so name that with -c or --data, or give a token with --token or $%s", file, tokenVariable)
		case err != nil:
			return nil, fmt.Errorf("the administrator's token in %s cannot be read: %w; run this as the owner of the data directory, or give a token with --token or $%s", file, cause(err), tokenVariable)
		}
		a.token, a.source = string(text), "in "+file
	}
	a.token = strings.TrimSpace(a.token)
	return a, nil
}

// databaseTrouble is why the running node has not reached its metadata database
// yet; "" if it has, or if none runs that says so.
func databaseTrouble(ctx context.Context, c *Config) string {
	resp, err := opsRequest(ctx, c, http.MethodGet, "/admin/status")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var s nodeStatus
	if json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&s) != nil {
		return ""
	}
	return s.Entitlements.Trouble
}

// send asks for a path under the admin API and returns an answer that is not a
// failure, which the caller closes.
func (a *adminClient) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+a.c.Ops+account.AdminPath+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	req.Header.Set(ops.AdminHeader, "1")
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("no weir answers at its ops address, %s; start it with \"weir serve\", or name the configuration of the one that runs with -c", a.c.Ops)
	case resp.StatusCode == http.StatusOK:
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var failed struct{ Error, Hint string }
	if json.Unmarshal(text, &failed) != nil || failed.Error == "" {
		return nil, fmt.Errorf("%s answers %s, which is not how a weir with accounts answers; is it another program, or an older weir?", a.c.Ops, resp.Status)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		failed.Error = fmt.Sprintf("the weir at %s does not take the token %s: %s", a.c.Ops, a.source, failed.Error)
		failed.Hint = "name the configuration of that weir with -c, or give another token with --token or $" + tokenVariable +
			"; if there is none that works, stop that weir and start it again: it then writes a new one to " + filepath.Join(a.c.Data, account.AdminFile)
	}
	if failed.Hint != "" {
		failed.Error += "; " + failed.Hint
	}
	return nil, errors.New(failed.Error)
}

// call sends and decodes the answer into out, unless that is nil.
func (a *adminClient) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := a.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("the answer of %s makes no sense: %w", a.c.Ops, err)
	}
	return nil
}

// say prints v as JSON, or what text says.
func (a *adminClient) say(v any, format string, args ...any) error {
	if a.output == "json" {
		return json.NewEncoder(a.stdout).Encode(v)
	}
	_, err := fmt.Fprintf(a.stdout, format+"\n", args...)
	return err
}

// table prints v as JSON, or rows below a head, cells parted by tabs; none is
// said for no rows.
func (a *adminClient) table(v any, none, head string, rows []string) error {
	if a.output == "json" {
		return json.NewEncoder(a.stdout).Encode(v)
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(a.stdout, none)
		return err
	}
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, head)
	for _, row := range rows {
		fmt.Fprintln(t, row)
	}
	return t.Flush()
}

// fields prints v as JSON, or its fields in lines, names and values in turn.
func (a *adminClient) fields(v any, pairs ...string) error {
	if a.output == "json" {
		return json.NewEncoder(a.stdout).Encode(v)
	}
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		fmt.Fprintf(t, "%s\t%s\n", pairs[i], orDash(pairs[i+1]))
	}
	return t.Flush()
}

// row is cells parted by tabs, "-" for empty ones.
func row(cells ...string) string {
	for i := range cells {
		cells[i] = orDash(cells[i])
	}
	return strings.Join(cells, "\t")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// part escapes a name or an ID as one part of a path.
func part(s string) string { return url.PathEscape(s) }

// parseSpan reads "30d", "12h", "90m"; "" is none.
func parseSpan(flag, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	var d time.Duration
	var err error
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		d = time.Duration(n) * 24 * time.Hour
	} else {
		d, err = time.ParseDuration(text)
	}
	if err != nil || d <= 0 {
		return 0, usageError{fmt.Errorf(`%s: %q is not a time such as "30d", "12h" or "90m"`, flag, text)}
	}
	return d, nil
}

// adminCommand is a command about accounts: it opens the client and runs.
func adminCommand(use, short, long, example string, args cobra.PositionalArgs, f *adminFlags, run func(ctx context.Context, a *adminClient, args []string) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := f.open(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := untilSignal(cmd.Context())
			defer cancel()
			return run(ctx, a, args)
		}}
	f.add(cmd)
	return cmd
}

// groupCommand is a command that has others.
func groupCommand(use, short, long, example string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(sub...)
	return cmd
}

// someArgs wants as many arguments as there are names.
func someArgs(what ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		path := strings.TrimPrefix(cmd.CommandPath(), "weir ")
		switch {
		case len(args) < len(what):
			return usageError{fmt.Errorf("%s: which %s? (weir %s)", path, what[len(args)], strings.TrimSuffix(cmd.UseLine()[len("weir "):], " [flags]"))}
		case len(args) > len(what):
			return usageError{fmt.Errorf("%s: %q is one argument too many; put what has blanks in it in quotes", path, args[len(what)])}
		}
		return nil
	}
}

// optionalArg takes one argument or none.
func optionalArg(cmd *cobra.Command, args []string) error {
	if len(args) <= 1 {
		return nil
	}
	return someArgs("")(cmd, args)
}

// arg is the first argument, if there is one.
func arg(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
