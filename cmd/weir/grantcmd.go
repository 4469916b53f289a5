package main

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"

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
		"  weir grant add alice \"pull oci:ghcr.io/acme/*\" --for 30d\n  weir grant deny robot:ci \"push npm:@acme/secret\"\n  weir grant list alice\n  weir grant revoke ID",
		grantAddCommand(false), grantAddCommand(true), grantListCommand(), grantRevokeCommand())
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
			right, err := entitle.ParseRight(args[1])
			if err != nil {
				return usageError{err}
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

// matchesNothing says why a right matches nothing that is configured; "" if it
// may match something.
func (c *Config) matchesNothing(r entitle.Right) string {
	upstreams := slices.Sorted(maps.Keys(c.OCI.Upstreams))
	switch {
	case r.Space == "":
		return ""
	case r.Space == oci.Space && !canMatch(r.Pattern, upstreams):
		return fmt.Sprintf("%q matches nothing that is configured here: container repositories begin with %s", r, orNone(upstreams))
	case r.Space == npmSpace && len(c.NPM.Upstreams) == 0:
		return fmt.Sprintf("%q matches nothing that is configured here: npm.upstreams has no entry", r)
	case r.Space != oci.Space && r.Space != npmSpace:
		return fmt.Sprintf("%q matches nothing: there is no protocol %q, only %s and %s", r, r.Space, oci.Space, npmSpace)
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
			return a.table(out.Grants, `nothing is granted; grant something with: weir grant add WHOM "pull oci:*"`, "ID\tTO\tKIND\tRIGHT\tENDS\tBY", rows)
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
	return adminCommand("revoke ID", "Take a grant or a prohibition back", "", "  weir grant revoke 3k9v…", someArgs("ID, as weir grant list shows it"), &f, func(ctx context.Context, a *adminClient, args []string) error {
		var out account.GrantAnswer
		if err := a.call(ctx, "DELETE", "grants/"+part(args[0]), nil, &out); err != nil {
			return err
		}
		kind := "grant"
		if out.Deny {
			kind = "prohibition"
		}
		return a.say(out, "the %s of %s to %s is revoked", kind, out.Right, out.To)
	})
}
