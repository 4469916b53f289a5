package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/weir-registry/weir/registry/account"
)

// passwordFlags say where a password comes from.
type passwordFlags struct{ stdin, generate bool }

func (p *passwordFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&p.stdin, "password-stdin", false, "read the password from standard input, a line")
	cmd.Flags().BoolVar(&p.generate, "generate", false, "make a good password and print it, once")
}

// read is the password, and whether it was made here and has to be told.
func (p *passwordFlags) read(in io.Reader, prompts io.Writer, name string) (password string, made bool, err error) {
	switch {
	case p.stdin && p.generate:
		return "", false, usageError{errors.New("--password-stdin and --generate: one of them")}
	case p.generate:
		return newPassword(), true, nil
	case p.stdin:
		text, err := io.ReadAll(io.LimitReader(in, 1<<10))
		if err != nil {
			return "", false, fmt.Errorf("read the password: %w", err)
		}
		line := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
		if line == "" || strings.Contains(line, "\n") {
			return "", false, errors.New("standard input is not one line with a password")
		}
		return line, false, nil
	}
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return "", false, usageError{errors.New("standard input is no terminal: give the password with --password-stdin, or have one made with --generate")}
	}
	password, err = askTwice(name, func(prompt string) (string, error) {
		fmt.Fprint(prompts, prompt)
		text, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(prompts)
		return string(text), err
	})
	return password, false, err
}

// askTwice asks for a new password until it is the same two times.
func askTwice(name string, ask func(prompt string) (string, error)) (string, error) {
	for range 3 {
		first, err := ask("Password for " + name + ": ")
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		second, err := ask("The same again: ")
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		if first == second && first != "" {
			return first, nil
		}
	}
	return "", errors.New("the two were not the same; nothing has been changed")
}

// newPassword has a hundred random bits, in letters that are not mistaken for
// one another.
func newPassword() string {
	const letters = "abcdefghjkmnpqrstuvwxyz123456789" // 32
	b := make([]byte, 20)
	_, _ = rand.Read(b) // crypto/rand.Read never fails
	var s strings.Builder
	for i, c := range b {
		if i > 0 && i%5 == 0 {
			s.WriteByte('-')
		}
		s.WriteByte(letters[c%32])
	}
	return s.String()
}

func userCommand() *cobra.Command {
	return groupCommand("user", "Say who may log in",
		"A user is a person with a name and a password, and perhaps tokens. What a user may do\nis granted (weir grant). These commands ask the running node that has the accounts,\nwith the administrator's token in its data directory.",
		"  weir user add alice\n  weir user list\n  weir user password alice\n  weir user disable alice",
		userAddCommand(), accountListCommand("user"), accountShowCommand("user"), accountRemoveCommand("user"), userPasswordCommand(),
		disableCommand("user", true), disableCommand("user", false))
}

func robotCommand() *cobra.Command {
	return groupCommand("robot", "Say which machines there are",
		"A robot is a machine: it has tokens (weir token create) and no password.",
		"  weir robot add ci\n  weir token create ci --for 90d\n  weir robot list",
		robotAddCommand(), accountListCommand("robot"), accountShowCommand("robot"), accountRemoveCommand("robot"),
		disableCommand("robot", true), disableCommand("robot", false))
}

func userAddCommand() *cobra.Command {
	var f adminFlags
	var p passwordFlags
	var email string
	var cmd *cobra.Command
	cmd = adminCommand("add NAME", "Add a user",
		"add asks for a password on the terminal, twice, without showing it. A new user may do\nwhat everyone may; more has to be granted.",
		"  weir user add alice --email alice@example.com\n  weir user add bob --generate\n  pass weir/carol | weir user add carol --password-stdin",
		someArgs("NAME"), &f, func(ctx context.Context, a *adminClient, args []string) error {
			password, made, err := p.read(cmd.InOrStdin(), a.stderr, args[0])
			if err != nil {
				return err
			}
			var out struct {
				account.AccountAnswer
				Password string `json:"password,omitempty"`
			}
			if err := a.call(ctx, "POST", "users", account.AccountRequest{Name: args[0], Email: email, Password: password}, &out); err != nil {
				return err
			}
			if !made {
				return a.say(out, "user %s is added; let it do something with: weir grant add %s \"pull oci:*\"%s", out.Name, out.Name, a.flags)
			}
			out.Password = password
			return a.say(out, "user %s is added, with this password, which is not shown again:\n\n  %s\n\nlet it do something with: weir grant add %s \"pull oci:*\"%s", out.Name, password, out.Name, a.flags)
		})
	p.add(cmd)
	cmd.Flags().StringVar(&email, "email", "", "an e-mail address, for people to know")
	return cmd
}

func robotAddCommand() *cobra.Command {
	var f adminFlags
	return adminCommand("add NAME", "Add a robot", "", "  weir robot add ci", someArgs("NAME"), &f, func(ctx context.Context, a *adminClient, args []string) error {
		var out account.AccountAnswer
		if err := a.call(ctx, "POST", "robots", account.AccountRequest{Name: args[0]}, &out); err != nil {
			return err
		}
		return a.say(out, "robot %s is added; let it do something with: weir grant add %s \"pull oci:*\"%s\nand make it a token with: weir token create %s%s", out.Name, out.Name, a.flags, out.Name, a.flags)
	})
}

func accountListCommand(kind string) *cobra.Command {
	var f adminFlags
	return adminCommand("list", "List the "+kind+"s", "", "  weir "+kind+" list\n  weir "+kind+" list -o json", noArgs, &f, func(ctx context.Context, a *adminClient, _ []string) error {
		var out account.Listing
		if err := a.call(ctx, "GET", kind+"s", nil, &out); err != nil {
			return err
		}
		all := append(out.Users, out.Robots...)
		if all == nil {
			all = []account.AccountAnswer{}
		}
		var rows []string
		for _, acc := range all {
			cells := []string{acc.Name, strings.Join(acc.Teams, ","), state(acc), when(acc.Created)}
			if kind == "user" {
				cells = append(cells, acc.Email)
			}
			rows = append(rows, row(cells...))
		}
		head := "NAME\tTEAMS\tSTATE\tCREATED"
		if kind == "user" {
			head += "\tEMAIL"
		}
		return a.table(all, "there are no "+kind+"s; add one with: weir "+kind+" add NAME"+a.flags, head, rows)
	})
}

func state(acc account.AccountAnswer) string {
	if acc.Disabled {
		return "disabled"
	}
	return "active"
}

func accountShowCommand(kind string) *cobra.Command {
	var f adminFlags
	return adminCommand("show NAME", "Show one "+kind, "", "  weir "+kind+" show alice", someArgs("NAME"), &f, func(ctx context.Context, a *adminClient, args []string) error {
		var acc account.AccountAnswer
		if err := a.call(ctx, "GET", kind+"s/"+part(args[0]), nil, &acc); err != nil {
			return err
		}
		return a.fields(acc, "name", acc.Name, "kind", acc.Kind, "uid", acc.UID, "email", acc.Email, "teams", strings.Join(acc.Teams, ", "), "state", state(acc), "created", when(acc.Created))
	})
}

func accountRemoveCommand(kind string) *cobra.Command {
	var f adminFlags
	return adminCommand("remove NAME", "Remove a "+kind+", with tokens and grants",
		"remove ends all that the "+kind+" may do, at once and everywhere. Another one of the same\nname that is added later has nothing of it.",
		"  weir "+kind+" remove alice", someArgs("NAME"), &f, func(ctx context.Context, a *adminClient, args []string) error {
			var out account.Changed
			if err := a.call(ctx, "DELETE", kind+"s/"+part(args[0]), nil, &out); err != nil {
				return err
			}
			return a.say(out, "%s %s is removed", kind, args[0])
		})
}

func userPasswordCommand() *cobra.Command {
	var f adminFlags
	var p passwordFlags
	var cmd *cobra.Command
	cmd = adminCommand("password NAME", "Set a user's password",
		"password sets a new password and ends the user's sessions; tokens that were made by\n\"weir token create\" or \"npm token create\" stay.",
		"  weir user password alice\n  weir user password alice --generate", someArgs("NAME"), &f, func(ctx context.Context, a *adminClient, args []string) error {
			password, made, err := p.read(cmd.InOrStdin(), a.stderr, args[0])
			if err != nil {
				return err
			}
			var out struct {
				account.Changed
				Password string `json:"password,omitempty"`
			}
			if err := a.call(ctx, "PUT", "users/"+part(args[0])+"/password", account.PasswordRequest{Password: password}, &out); err != nil {
				return err
			}
			if !made {
				return a.say(out, "the password of %s is set", args[0])
			}
			out.Password = password
			return a.say(out, "the password of %s is set to this, which is not shown again:\n\n  %s\n", args[0], password)
		})
	p.add(cmd)
	return cmd
}

func disableCommand(kind string, disable bool) *cobra.Command {
	use, done := "enable", "enabled"
	long := "enable lets a " + kind + " do again what is granted to it."
	if disable {
		use, done = "disable", "disabled"
		long = "disable ends what a " + kind + " may do, at once and everywhere, until it is enabled again:\nits password and its tokens do not count meanwhile."
	}
	name := "alice"
	if kind == "robot" {
		name = "ci"
	}
	var f adminFlags
	return adminCommand(use+" NAME", strings.ToUpper(use[:1])+use[1:]+" a "+kind, long, "  weir "+kind+" "+use+" "+name, someArgs("NAME"), &f, func(ctx context.Context, a *adminClient, args []string) error {
		var out account.Changed
		if err := a.call(ctx, "PUT", "accounts/"+part(args[0])+"/disabled", account.DisabledRequest{Disabled: disable}, &out); err != nil {
			return err
		}
		return a.say(out, "%s is %s", args[0], done)
	})
}
