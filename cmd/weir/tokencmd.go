package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-registry/weir/oci"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
)

func tokenCommand() *cobra.Command {
	return groupCommand("token", "Make and revoke tokens",
		"A token stands for its owner without a password, perhaps for less than its owner may\n(--right), only from some networks (--from), or for some time (--for).",
		"  weir token create ci --right \"pull oci:*\" --for 90d --note \"build machines\"\n  weir token list ci\n  weir token revoke ID --wait",
		tokenCreateCommand(), tokenListCommand(), tokenShowCommand(), tokenRevokeCommand(), tokenRekeyCommand())
}

func tokenCreateCommand() *cobra.Command {
	var f adminFlags
	var note, span string
	var rights, from []string
	cmd := adminCommand("create OWNER", "Make a token and print it, once", "", "  weir token create alice --note laptop\n  weir token create ci --right \"pull oci:ghcr.io/acme/*\" --from 10.0.0.0/8 --for 90d",
		someArgs("OWNER"), &f, func(ctx context.Context, a *adminClient, args []string) error {
			req := account.TokenRequest{Owner: args[0], TokenSpec: registry.TokenSpec{Note: note, Rights: rights}}
			var err error
			if req.Lifetime, err = parseSpan("--for", span); err != nil {
				return err
			}
			for _, text := range from {
				p, err := parseNetwork(text)
				if err != nil {
					return usageError{err}
				}
				req.From = append(req.From, p)
			}
			var notes []string
			for _, text := range rights {
				r, err := parseRight(text)
				if err != nil {
					return err
				}
				if why := a.c.matchesNothing(r); why != "" {
					notes = append(notes, why)
				}
			}
			var out registry.NewToken
			if err := a.call(ctx, "POST", "tokens", req, &out); err != nil {
				return err
			}
			for _, why := range notes {
				fmt.Fprintf(a.stderr, "note: %s\n", why)
			}
			return a.say(out, "token %s of %s%s. This is it; it is not shown again:\n\n  %s\n\nTo use it:\n\n%s",
				out.ID, out.Owner, until(out.Expires), out.Secret, a.c.howToUse(out))
		})
	cmd.Flags().StringVar(&note, "note", "", "what it is for, for people to know")
	cmd.Flags().StringVar(&span, "for", "", `how long it counts, such as "90d"; without, until it is revoked`)
	cmd.Flags().StringArrayVar(&rights, "right", nil, `only this of what its owner may, such as "pull oci:*"; may be repeated`)
	cmd.Flags().StringArrayVar(&from, "from", nil, "only from this network, such as 10.0.0.0/8; may be repeated")
	return cmd
}

// howToUse is what to paste to use a token, for the protocols that it is for.
func (c *Config) howToUse(t registry.NewToken) string {
	host, about := c.clientHost(), strings.Join(t.Rights, "\n")
	is := func(space string) bool {
		return len(t.Rights) == 0 || strings.Contains(about, " "+space+":") || strings.Contains(about, " *")
	}
	var lines []string
	if is(oci.Space) {
		lines = append(lines, fmt.Sprintf("  docker login -u %s --password-stdin %s    # and paste it", t.Owner, host))
	}
	if is(npmSpace) {
		lines = append(lines, fmt.Sprintf("  npm config set //%s%s/:_authToken=%s", host, npmPrefix, t.Secret))
	}
	return strings.Join(lines, "\n")
}

// tokenPart is tokenName as a part of a path.
func tokenPart(text string) string { return part(tokenName(text)) }

// tokenName is a token as requests name it: by its ID, or, for who has the
// secret alone, by the hash of that, so that the secret stays here.
func tokenName(text string) string {
	if registry.CheckTokenText(text) {
		hash := registry.HashToken(text)
		text = "sha256:" + hex.EncodeToString(hash[:])
	}
	return text
}

// parseNetwork reads a network or an address.
func parseNetwork(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("--from: %q is not a network such as 10.0.0.0/8", text)
	}
	return p, nil
}

// clientHost is what clients call this node.
func (c *Config) clientHost() string {
	if u, err := url.Parse(c.PublicURL); err == nil && u.Host != "" {
		return u.Host
	}
	if host, port, err := net.SplitHostPort(c.Listen); err == nil && (host == "" || host == "0.0.0.0" || host == "::") {
		return "localhost:" + port
	}
	return c.Listen
}

func tokenListCommand() *cobra.Command {
	var f adminFlags
	return adminCommand("list [OWNER]", "List tokens", "", "  weir token list\n  weir token list ci -o json", optionalArg, &f, func(ctx context.Context, a *adminClient, args []string) error {
		var out account.Listing
		if err := a.call(ctx, "GET", "tokens?"+url.Values{"owner": {arg(args)}}.Encode(), nil, &out); err != nil {
			return err
		}
		if out.Tokens == nil {
			out.Tokens = []registry.Token{}
		}
		var rows []string
		for _, t := range out.Tokens {
			rights := strings.Join(t.Rights, ", ")
			if rights == "" {
				rights = "all of its owner's"
			}
			rows = append(rows, row(t.ID, t.Owner, t.Kind, t.Note, rights, ends(t.Expires), when(t.Used)))
		}
		return a.table(out.Tokens, "there are no tokens; make one with: weir token create OWNER"+a.flags, "ID\tOWNER\tKIND\tNOTE\tRIGHTS\tENDS\tLAST USED", rows)
	})
}

func tokenShowCommand() *cobra.Command {
	var f adminFlags
	return adminCommand("show ID", "Show one token, without its secret", "", "  weir token show 3k9v…", someArgs("ID, as weir token list shows it"), &f, func(ctx context.Context, a *adminClient, args []string) error {
		var t account.TokenAnswer
		if err := a.call(ctx, "GET", "tokens/"+tokenPart(args[0]), nil, &t); err != nil {
			return err
		}
		var from []string
		for _, p := range t.From {
			from = append(from, p.String())
		}
		return a.fields(t, "id", t.ID, "owner", t.Owner, "kind", t.Kind, "note", t.Note, "rights", strings.Join(t.Rights, ", "),
			"from", strings.Join(from, ", "), "ends", ends(t.Expires), "created", when(t.Created), "last used", when(t.Used))
	})
}

func tokenRevokeCommand() *cobra.Command {
	var f adminFlags
	var wait bool
	var limit time.Duration
	cmd := adminCommand("revoke ID", "End a token, everywhere",
		"revoke ends a token: nodes refuse it within a second, and what is being downloaded with\nit is cut off. With --wait it says which nodes have heard of it, as they do; the exit\ncode is 1 if some have not within --timeout. Those refuse it as soon as they hear from\nthe node behind them again. A token that somebody has found can be named by itself instead\nof by its ID.",
		"  weir token revoke 3k9v… --wait\n  weir token revoke weir_…\n  weir token revoke 3k9v… --wait --timeout 1m -o json", someArgs("ID, as weir token list shows it"), &f, func(ctx context.Context, a *adminClient, args []string) error {
			var out account.TokenAnswer
			if err := a.call(ctx, "DELETE", "tokens/"+tokenPart(args[0]), nil, &out); err != nil {
				return err
			}
			if !wait {
				return a.say(out, "token %s of %s is revoked", out.ID, out.Owner)
			}
			if a.output == "text" {
				fmt.Fprintf(a.stdout, "token %s of %s is revoked at version %d; nodes that have it:\n", out.ID, out.Owner, out.Version)
			}
			return a.follow(ctx, out.Version, limit)
		})
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until all nodes have heard of it")
	cmd.Flags().DurationVar(&limit, "timeout", 10*time.Second, "how long to wait, 5m at most")
	return cmd
}

func tokenRekeyCommand() *cobra.Command {
	var f adminFlags
	return adminCommand("rekey", "End all short-lived tokens, and the keys they are made with",
		"rekey makes a new key for the tokens of some minutes that clients get for each pull, and\nends those made with the keys before. Run it after weir tiers revoke: a node that was cut\noff knows the keys, and they would count for up to three days more. Clients get other\ntokens by themselves; tokens that weir token list shows are not touched.",
		"  weir token rekey", noArgs, &f, func(ctx context.Context, a *adminClient, _ []string) error {
			var out account.Changed
			if err := a.call(ctx, "DELETE", "keys", nil, &out); err != nil {
				return err
			}
			return a.say(out, "there is a new key; short-lived tokens made before count no more")
		})
}

// follow prints nodes as they reach a version. It is an error if some do not.
func (a *adminClient) follow(ctx context.Context, version uint64, limit time.Duration) error {
	q := url.Values{"version": {strconv.FormatUint(version, 10)}, "wait": {limit.String()}}
	resp, err := a.send(ctx, "GET", "nodes?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := json.NewDecoder(bufio.NewReader(resp.Body))
	have := map[string]bool{}
	for {
		var r account.Reached
		if err := lines.Decode(&r); err != nil {
			return fmt.Errorf("the node at %s broke off: %w; it is revoked, and which nodes have heard of it is not known", a.c.Ops, err)
		}
		switch {
		case a.output == "json":
			if err := json.NewEncoder(a.stdout).Encode(r); err != nil {
				return err
			}
		case !r.Done:
			name := nodeName(r.Node, r.Via)
			if r.Self {
				name += " (this node)"
			}
			fmt.Fprintf(a.stdout, "  %-32s after %.3fs\n", name, r.After)
		}
		if !r.Done {
			have[r.Node] = true
			continue
		}
		if len(r.Missing) == 0 {
			if a.output == "text" {
				fmt.Fprintf(a.stdout, "that is all of them: %d\n", len(have))
			}
			return nil
		}
		var names []string
		for _, n := range r.Missing {
			if a.output == "text" {
				fmt.Fprintf(a.stdout, "  %-32s not within %.3fs; last heard of %s\n", nodeName(n.Node, n.Via), r.After, when(n.Heard))
			}
			if !slices.Contains(names, n.Node) {
				names = append(names, n.Node)
			}
		}
		return fmt.Errorf("it is revoked, but nodes that have not heard of it yet: %s", strings.Join(names, ", "))
	}
}

// nodeName is a node and those on the way to it.
func nodeName(name string, via []string) string {
	if len(via) == 0 {
		return name
	}
	return name + " (via " + strings.Join(via, ", ") + ")"
}
