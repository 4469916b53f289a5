package main

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/oci"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
	"github.com/weir-registry/weir/registry/entitle"
)

func grantCommand() *cobra.Command {
	return groupCommand("grant", "Say who may do what",
		"A grant lets somebody (alice, robot:ci, team:core, anonymous) do something:\n\n"+
			"  pull oci:docker.io/library/*   container images; repositories begin with their registry's name\n"+
			"  push npm:@acme/*               packages; who may push may pull\n"+
			"  admin *                        everything, and these commands\n\n"+
			"A \"*\" is any run of characters. What is denied is denied, whatever else is granted.",
		"  weir grant add alice \"pull oci:ghcr.io/acme/*\" --for 30d\n  weir grant deny robot:ci \"push npm:@acme/secret\"\n  weir grant list alice\n  weir grant test alice \"pull oci:ghcr.io/acme/app\"\n  weir grant revoke ID",
		grantAddCommand(false), grantAddCommand(true), grantListCommand(), grantTestCommand(), grantRevokeCommand())
}

func grantAddCommand(deny bool) *cobra.Command {
	use, short, done := "add", "Let somebody do something", "may"
	if deny {
		use, short, done = "deny", "Forbid somebody something, whatever else is granted", "may not"
	}
	var f adminFlags
	var span string
	cmd := adminCommand(use+" WHOM RIGHT", short, "", "  weir grant "+use+" alice \"pull oci:ghcr.io/acme/*\"\n  weir grant "+use+" team:core \"push npm:@acme/*\" --for 30d",
		someArgs("WHOM", `RIGHT, such as "pull oci:docker.io/*"`), &f, func(ctx context.Context, a *adminClient, args []string) error {
			life, err := parseSpan("--for", span)
			if err != nil {
				return err
			}
			right, err := parseRight(args[1])
			if err != nil {
				return err
			}
			var out account.GrantAnswer
			if err := a.call(ctx, "POST", "grants", account.GrantSpec{To: args[0], Right: right.String(), Deny: deny, Lifetime: life}, &out); err != nil {
				return err
			}
			if why := a.c.matchesNothing(right); why != "" {
				fmt.Fprintf(a.stderr, "note: %s\n", why)
			}
			return a.say(out, "%s %s %s%s (grant %s)", out.To, done, out.Right, until(out.Expires), out.ID)
		})
	cmd.Flags().StringVar(&span, "for", "", `how long it counts, such as "30d" or "12h"; without, until it is revoked`)
	return cmd
}

func until(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " until " + when(t)
}

// parseRight reads a right as a person writes it: what can never match anything
// is a mistake.
func parseRight(text string) (entitle.Right, error) {
	r, err := entitle.ParseRight(text)
	if err != nil {
		return r, usageError{err}
	}
	last := r.Pattern[strings.LastIndexByte(r.Pattern, '/')+1:]
	switch {
	case r.Space != "" && r.Space != oci.Space && r.Space != npmSpace:
		return r, usageError{fmt.Errorf("right %q: there is no protocol %q, only %s and %s", text, r.Space, oci.Space, npmSpace)}
	case r.Space == oci.Space && (strings.Contains(r.Pattern, "@") || last != r.Pattern && strings.Contains(last, ":")),
		r.Space == npmSpace && strings.LastIndexByte(last, '@') > 0:
		return r, usageError{fmt.Errorf("right %q: it is about all of a repository or package; leave out the tag, version or digest", text)}
	}
	return r, nil
}

// matchesNothing says why a right matches nothing that is configured; "" if it
// may match something.
func (c *Config) matchesNothing(r entitle.Right) string {
	upstreams := slices.Sorted(maps.Keys(c.OCI.Upstreams))
	switch {
	case r.Space == "":
		return ""
	case r.Space == oci.Space && shortOnHub(r.Pattern):
		return fmt.Sprintf("%q matches nothing: what has one part on Docker Hub is called docker.io/library/NAME", r)
	case r.Space == npmSpace && !strings.Contains(r.Pattern, "*") && r.Pattern != "-" && !npm.ValidName(r.Pattern):
		return fmt.Sprintf("%q matches nothing: no package can be called that", r)
	case r.Space == oci.Space && !canMatch(r.Pattern, upstreams):
		return fmt.Sprintf("%q matches nothing that is configured here: container repositories begin with %s", r, orNone(upstreams))
	case r.Space == npmSpace && len(c.NPM.Upstreams) == 0:
		return fmt.Sprintf("%q matches nothing that is configured here: npm.upstreams has no entry", r)
	}
	return ""
}

func grantListCommand() *cobra.Command {
	var f adminFlags
	return adminCommand("list [WHOM]", "List what is granted and denied", "list shows what is granted to one (what its teams have is theirs), or to all.", "  weir grant list\n  weir grant list team:core -o json", optionalArg, &f,
		func(ctx context.Context, a *adminClient, args []string) error {
			var out account.Listing
			if err := a.call(ctx, "GET", "grants?"+url.Values{"to": {arg(args)}}.Encode(), nil, &out); err != nil {
				return err
			}
			if out.Grants == nil {
				out.Grants = []registry.Grant{}
			}
			var rows []string
			for _, g := range out.Grants {
				kind := "allow"
				if g.Deny {
					kind = "deny"
				}
				rows = append(rows, row(g.ID, g.To, kind, g.Right, ends(g.Expires), g.By))
			}
			none := `nothing is granted; grant something with: weir grant add WHOM "pull oci:*"` + a.flags
			if err := a.table(out.Grants, none, "ID\tTO\tKIND\tRIGHT\tENDS\tBY", rows); err != nil || a.output == "json" {
				return err
			}
			if whom := arg(args); whom == "" || whom == "anonymous" {
				everyone := strings.Join(a.c.Access.Anonymous, ", ")
				if everyone == "" {
					everyone = "nothing"
				}
				_, err := fmt.Fprintf(a.stdout, "\neveryone, by access.anonymous in the configuration of this node: %s\n", everyone)
				return err
			}
			return nil
		})
}

// ends is when something ends, for people.
func ends(t time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case time.Now().After(t):
		return "expired"
	}
	return when(t)
}

func grantRevokeCommand() *cobra.Command {
	var f adminFlags
	args := func(cmd *cobra.Command, args []string) error {
		if len(args) == 2 {
			return nil
		}
		return someArgs("ID, as weir grant list shows it, or WHOM and RIGHT")(cmd, args)
	}
	return adminCommand("revoke ID | WHOM RIGHT", "Take a grant or a prohibition back", "", "  weir grant revoke 3k9v…\n  weir grant revoke alice \"pull oci:ghcr.io/acme/*\"", args, &f, func(ctx context.Context, a *adminClient, args []string) error {
		ids := args[:1]
		if len(args) == 2 {
			var err error
			if ids, err = a.grantsOf(ctx, args[0], args[1]); err != nil {
				return err
			}
		}
		for _, id := range ids {
			var out account.GrantAnswer
			if err := a.call(ctx, "DELETE", "grants/"+part(id), nil, &out); err != nil {
				return err
			}
			kind := "grant"
			if out.Deny {
				kind = "prohibition"
			}
			if err := a.say(out, "the %s of %s to %s is revoked", kind, out.Right, out.To); err != nil {
				return err
			}
		}
		return nil
	})
}

// grantsOf are the IDs of the grants to one, and the prohibitions, of a right as
// it is written.
func (a *adminClient) grantsOf(ctx context.Context, whom, right string) (ids []string, err error) {
	var out account.Listing
	if err := a.call(ctx, "GET", "grants?"+url.Values{"to": {whom}}.Encode(), nil, &out); err != nil {
		return nil, err
	}
	for _, g := range out.Grants {
		if g.Right == right {
			ids = append(ids, g.ID)
		}
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("%q is not granted to %s; see: weir grant list %s%s", right, whom, whom, a.flags)
	}
	return ids, nil
}
