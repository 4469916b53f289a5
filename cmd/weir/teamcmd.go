package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
)

func teamCommand() *cobra.Command {
	return groupCommand("team", "Say who is granted the same",
		"What is granted to a team all its members have, users and robots.",
		"  weir team add core\n  weir team join core alice\n  weir grant add team:core \"pull oci:ghcr.io/acme/*\"",
		teamAddCommand(), teamListCommand(), teamShowCommand(), teamRemoveCommand(), teamMemberCommand(true), teamMemberCommand(false))
}

func teamAddCommand() *cobra.Command {
	var f adminFlags
	return adminCommand("add TEAM", "Add a team", "", "  weir team add core", someArgs("TEAM"), &f, func(ctx context.Context, a *adminClient, args []string) error {
		var out account.TeamAnswer
		if err := a.call(ctx, "POST", "teams", account.TeamRequest{Name: args[0]}, &out); err != nil {
			return err
		}
		return a.say(out, "team %s is added; put somebody into it with: weir team join %s NAME%s", out.Name, out.Name, a.flags)
	})
}

func teamListCommand() *cobra.Command {
	var f adminFlags
	return adminCommand("list", "List the teams", "", "  weir team list\n  weir team list -o json", noArgs, &f, func(ctx context.Context, a *adminClient, _ []string) error {
		var out account.Listing
		if err := a.call(ctx, "GET", "teams", nil, &out); err != nil {
			return err
		}
		if out.Teams == nil {
			out.Teams = []registry.Team{}
		}
		var rows []string
		for _, t := range out.Teams {
			rows = append(rows, row(t.Name, when(t.Created)))
		}
		return a.table(out.Teams, "there are no teams; add one with: weir team add TEAM"+a.flags, "NAME\tCREATED", rows)
	})
}

func teamShowCommand() *cobra.Command {
	var f adminFlags
	return adminCommand("show TEAM", "Show one team and its members", "", "  weir team show core", someArgs("TEAM"), &f, func(ctx context.Context, a *adminClient, args []string) error {
		var t account.TeamAnswer
		if err := a.call(ctx, "GET", "teams/"+part(args[0]), nil, &t); err != nil {
			return err
		}
		return a.fields(t, "name", t.Name, "uid", t.UID, "members", strings.Join(t.Members, ", "), "created", when(t.Created))
	})
}

func teamRemoveCommand() *cobra.Command {
	var f adminFlags
	return adminCommand("remove TEAM", "Remove a team, with what is granted to it", "", "  weir team remove core", someArgs("TEAM"), &f, func(ctx context.Context, a *adminClient, args []string) error {
		var out account.Changed
		if err := a.call(ctx, "DELETE", "teams/"+part(args[0]), nil, &out); err != nil {
			return err
		}
		return a.say(out, "team %s is removed", args[0])
	})
}

func teamMemberCommand(join bool) *cobra.Command {
	use, short, method, done := "join", "Put a user or a robot into a team", "PUT", "in"
	if !join {
		use, short, method, done = "leave", "Take a user or a robot out of a team", "DELETE", "not in"
	}
	var f adminFlags
	return adminCommand(use+" TEAM NAME", short, "", "  weir team "+use+" core alice", someArgs("TEAM", "NAME"), &f, func(ctx context.Context, a *adminClient, args []string) error {
		var out account.Changed
		if err := a.call(ctx, method, "teams/"+part(args[0])+"/members/"+part(args[1]), nil, &out); err != nil {
			return err
		}
		return a.say(out, "%s is %s team %s", args[1], done, args[0])
	})
}
