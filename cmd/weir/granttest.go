package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
)

func grantTestCommand() *cobra.Command {
	var f adminFlags
	return adminCommand("test WHOM RIGHT", "Say whether somebody may do something, and by which grant",
		"test asks the node with the accounts what it would answer to somebody (alice, robot:ci,\n"+
			"token:ID, anonymous), and says which grants or prohibitions decide. RIGHT is one\n"+
			"repository or package. The exit code is 0 for yes and 1 for no. What everyone may at\n"+
			"another node (access.anonymous there) it does not know.",
		"  weir grant test alice \"pull oci:ghcr.io/acme/app\"\n  weir grant test anonymous \"pull npm:lodash\"\n  weir grant test token:3k9v… \"push oci:ghcr.io/acme/app\" -o json",
		someArgs("WHOM", `RIGHT, such as "pull oci:docker.io/library/alpine"`), &f, func(ctx context.Context, a *adminClient, args []string) error {
			right, err := parseRight(args[1])
			if err != nil {
				return err
			}
			whom := args[0]
			if id, ok := strings.CutPrefix(whom, "token:"); ok {
				whom = "token:" + tokenName(id)
			}
			var out account.Checked
			if err := a.call(ctx, "GET", "check?"+url.Values{"who": {whom}, "right": {right.String()}}.Encode(), nil, &out); err != nil {
				return err
			}
			if err := a.say(out, "%s", verdict(out)); err != nil {
				return err
			}
			if out.Allowed {
				return nil
			}
			switch why := a.c.matchesNothing(right); {
			case why != "":
				fmt.Fprintf(a.stderr, "note: %s\n", why)
			case out.Ungranted:
				fmt.Fprintf(a.stderr, "note: to allow it: weir grant add %s %q%s\n", out.Who, out.Right, a.flags)
			}
			return errSaidNo
		})
}

// verdict is an answer for people.
func verdict(c account.Checked) string {
	var b strings.Builder
	switch {
	case !c.Allowed:
		fmt.Fprintf(&b, "no: %s", c.Why)
	default:
		fmt.Fprintf(&b, "yes: %s may %s", c.Who, c.Right)
		if len(c.Grants) == 0 {
			b.WriteString("\n  everyone may, by access.anonymous in the configuration of this node")
		}
	}
	for _, g := range c.Grants {
		fmt.Fprintf(&b, "\n  %s", grantLine(g))
	}
	return b.String()
}

func grantLine(g registry.Grant) string {
	may := "may"
	if g.Deny {
		may = "may not"
	}
	return fmt.Sprintf("%s %s %s%s (grant %s)", g.To, may, g.Right, until(g.Expires), g.ID)
}
