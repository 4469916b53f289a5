package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-registry/weir/registry/trust"
)

// tiersFlags are what all commands about other nodes have.
type tiersFlags struct{ config, data, output string }

func (f *tiersFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "configuration file of this node")
	cmd.Flags().StringVar(&f.data, "data", "", "data directory, instead of the configuration's")
	cmd.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
}

// read checks the flags and reads the configuration.
func (f *tiersFlags) read() (*Config, error) {
	if f.output != "text" && f.output != "json" {
		return nil, usageError{fmt.Errorf("-o %s: neither text nor json", f.output)}
	}
	c, err := readConfig(f.config)
	if err == nil && f.data != "" {
		c.Data = f.data
	}
	return c, err
}

// errElsewhere is why there is nothing to invite, join or revoke.
var errElsewhere = errors.New("this node's certificates come from elsewhere (tls in its configuration): whoever issues them says which nodes may connect")

// edit is read, and the files.
func (f *tiersFlags) edit(stderr io.Writer) (*Config, *trust.Trust, error) {
	c, err := f.read()
	if err != nil {
		return nil, nil, err
	}
	if c.TLS.given() {
		return nil, nil, errElsewhere
	}
	t, err := editTrust(c, slog.New(slog.NewTextHandler(stderr, nil)))
	return c, t, err
}

func tiersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tiers",
		Short: "Say which nodes may connect to each other",
		Long: "Nodes connect to each other by TLS with certificates on both sides. The node behind\n" +
			"invites the one in front, which joins with the code that is printed; certificates\n" +
			"renew by themselves from then on. These commands work on the files of a node,\n" +
			"whether or not it runs; a running one sees what they change at once.",
		Example: "  weir tiers invite edge1 -c weir.yaml     # on the node behind\n  weir tiers join CODE -c weir.yaml        # on the node in front\n  weir tiers ls -c weir.yaml\n  weir tiers revoke edge1 -c weir.yaml",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(tiersInviteCommand(), tiersJoinCommand(), tiersListCommand(), tiersRevokeCommand())
	return cmd
}

// oneArg wants just one argument, which is called what.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return usageError{fmt.Errorf("%s: which %s?", strings.TrimPrefix(cmd.CommandPath(), "weir "), what)}
		case 1:
			return nil
		}
		return usageError{fmt.Errorf("%q takes one %s, and not %q as well", cmd.CommandPath(), what, args[1])}
	}
}

func tiersInviteCommand() *cobra.Command {
	var f tiersFlags
	var o trust.InviteOptions
	cmd := &cobra.Command{
		Use:   "invite NAME",
		Short: "Print a code that lets one node join this one, once",
		Long: "invite prints a join code for a node that is to be called NAME. The code is a secret:\n" +
			"whoever uses it first is that node. It says where this node is, which is what\n" +
			"peers.self or tiers in the configuration say unless --address does.\n" +
			"An equal (--equal) is given this node's authority, key included: nodes that joined\n" +
			"one of several equals are admitted by all of them.",
		Example: "  weir tiers invite edge1 -c weir.yaml\n  weir tiers invite edge1 --address https://shield.example.com:5001 --expires 10m\n  weir tiers invite shield2 --equal -o json",
		Args:    oneArg("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Name = args[0]
			c, t, err := f.edit(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if o.Address == "" {
				if o.Address = c.tierAddress(); o.Address == "" {
					return usageError{fmt.Errorf("tiers invite: by which address does the other node reach this one? (--address %s)", c.tierGuess())}
				}
			}
			inv, err := t.Invite(o)
			if err != nil {
				return err
			}
			if c.Tiers == "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "note: this node listens for no others yet: its configuration needs tiers, such as \"tiers: 0.0.0.0:5001\"")
			}
			if f.output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(inv)
			}
			return printInvitation(cmd.OutOrStdout(), inv, c.tiersDir())
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&o.Address, "address", "", "how the other node reaches this one, https://HOST:PORT")
	cmd.Flags().DurationVar(&o.Expires, "expires", trust.DefaultExpiry, "how long the code can be used")
	cmd.Flags().StringArrayVar(&o.Hosts, "host", nil, "a name or address that the other node may serve under; may be repeated")
	cmd.Flags().BoolVar(&o.Equal, "equal", false, "make the other node an equal of this one, which can invite and revoke")
	return cmd
}

func printInvitation(w io.Writer, inv trust.Invitation, dir string) error {
	as := ""
	if inv.Equal {
		as = " as an equal, which gets the key of this node's authority"
	}
	if inv.Known {
		fmt.Fprintf(w, "%s has joined before; what it has stays good until it expires or is revoked.\n", inv.Name)
	}
	_, err := fmt.Fprintf(w, "%s can join %s%s, once, until %s.\nRun this on the other machine, with the -c or --data of the node there:\n\n  weir tiers join %s\n\n"+
		"The code is a secret until it has been used.\n", inv.Name, inv.Address, as, when(inv.Expires), inv.Code)
	// Whose authority it is is easily another's than was meant: -c was
	// forgotten, or data is relative.
	if abs, aerr := filepath.Abs(dir); err == nil && aerr == nil {
		_, err = fmt.Fprintf(w, "It is for the node whose authority is in %s.\n", abs)
	}
	return err
}

// joinFlags are the command line's.
type joinFlags struct {
	tiersFlags
	hosts   []string
	address string
}

func tiersJoinCommand() *cobra.Command {
	var f joinFlags
	cmd := &cobra.Command{
		Use:   "join CODE",
		Short: "Let this node join another one by its code",
		Long: "join makes a key, which stays on this machine, has the node behind issue a certificate\n" +
			"for it, and says what to add to the configuration. The node behind must be running;\n" +
			"it is known by the fingerprint in the code, whatever this machine trusts otherwise.",
		Example: "  weir tiers join weir1_AAAA… -c weir.yaml\n  weir tiers join weir1_AAAA… --data /var/lib/weir",
		Args: func(cmd *cobra.Command, args []string) error {
			return oneArg("CODE")(cmd, args[:min(len(args), 1)]) // a code that was broken into lines is still one
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.read()
			if err != nil {
				return err
			}
			if c.TLS.given() {
				return errElsewhere
			}
			if f.address == "" {
				f.address = c.tierAddress()
			}
			ctx, cancel := untilSignal(cmd.Context())
			defer cancel()
			joined, err := trust.Join(ctx, trust.JoinOptions{Dir: c.tiersDir(), Code: strings.Join(args, ""), Hosts: f.hosts, Address: f.address})
			if err != nil {
				return err
			}
			if f.output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(joined)
			}
			return printJoined(cmd.OutOrStdout(), c, joined)
		},
	}
	f.add(cmd)
	cmd.Flags().StringArrayVar(&f.hosts, "host", nil, "a name or address to serve under, which the invitation must allow; may be repeated")
	cmd.Flags().StringVar(&f.address, "address", "", "how an equal reaches this node, https://HOST:PORT; without, what peers.self or tiers say")
	return cmd
}

// printJoined says what happened and what is still to be done.
func printJoined(w io.Writer, c *Config, j trust.Joined) error {
	if j.Equal {
		self := c.tierAddress()
		if self == "" {
			self = c.tierGuess()
		}
		tiers := c.Tiers
		if tiers == "" {
			tiers = "0.0.0.0:5001"
		}
		_, err := fmt.Fprintf(w, "This node is %s now, an equal of %s: each admits the nodes of both.\n\n"+
			"To let others connect to it, its configuration needs\n\n  tiers: %s\n\n"+
			"and if the two are in one place and are to share their disks, also\n\n  peers: {self: %q, nodes: [%q]}\n\n"+
			"A node that runs here has to be started again.\n", j.Name, j.Address, tiers, self, j.Address)
		return err
	}
	fmt.Fprintf(w, "This node is %s now at %s. Its certificate renews by itself.\n", j.Name, j.Address)
	switch next := nodes(c.Next); {
	case slices.Contains(next, j.Address):
		_, err := fmt.Fprintln(w, "\nThe configuration says so already (next).")
		return err
	case len(next) > 0:
		next = append(next, j.Address)
		_, err := fmt.Fprintf(w, "\nAdd it to the configuration and start the node again:\n\n  next: [%s]\n", strings.Join(next, ", "))
		return err
	}
	_, err := fmt.Fprintf(w, "\nAdd this to the configuration and start the node again:\n\n  next: %s\n", j.Address)
	return err
}

func tiersListCommand() *cobra.Command {
	var f tiersFlags
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List the nodes that have joined this one, and those it has joined",
		Example: "  weir tiers ls -c weir.yaml\n  weir tiers ls -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, t, err := f.edit(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			l, err := t.List()
			if err != nil {
				return err
			}
			if f.output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(l)
			}
			return printListing(cmd.OutOrStdout(), l)
		},
	}
	f.add(cmd)
	return cmd
}

func printListing(w io.Writer, l trust.Listing) error {
	if len(l.Nodes)+len(l.Joined) == 0 {
		_, err := fmt.Fprintln(w, "no node has joined this one, and it has joined none")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(l.Nodes) > 0 {
		fmt.Fprintln(table, "NAME\tSERIAL\tISSUED\tEXPIRES\tLAST SEEN\tSTATE")
		for _, n := range l.Nodes {
			state := n.State
			if n.Equal {
				state += ", equal"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, short(n.Serial), when(n.Issued), when(n.Expires), when(n.Seen), state)
		}
	}
	if len(l.Joined) > 0 {
		if len(l.Nodes) > 0 {
			fmt.Fprintln(table)
		}
		fmt.Fprintln(table, "THIS NODE IS\tAT\tSERIAL\tISSUED\tEXPIRES\tSTATE")
		for _, n := range l.Joined {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Address, short(n.Serial), when(n.Issued), when(n.Expires), n.State)
		}
	}
	return table.Flush()
}

func tiersRevokeCommand() *cobra.Command {
	var f tiersFlags
	var elsewhere bool
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "End what a node may do here, at once",
		Long: "revoke makes all certificates and codes count no more that NAME has been given until\n" +
			"now; a running node refuses its next request, equals do so within seconds. NAME can\n" +
			"be invited again. A node that joined through an equal is not known here by name:\n" +
			"--elsewhere revokes it all the same.",
		Example: "  weir tiers revoke edge1 -c weir.yaml\n  weir tiers revoke edge9 --elsewhere",
		Args:    oneArg("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, t, err := f.edit(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			out, err := t.Revoke(args[0], elsewhere)
			if err != nil {
				return err
			}
			if f.output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(out)
			}
			return printRevoked(cmd.OutOrStdout(), out)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&elsewhere, "elsewhere", false, "also a name that is not known here, of a node that joined through an equal")
	return cmd
}

func printRevoked(w io.Writer, r trust.Revoked) error {
	fmt.Fprintf(w, "%s is cut off. What counts no more: certificates: %d, unused join codes: %d\n", r.Name, len(r.Serials), r.Codes)
	for _, s := range r.Serials {
		fmt.Fprintf(w, "  certificate %s\n", short(s))
	}
	fmt.Fprintln(w, "It knows the keys of short-lived tokens: on the node with the accounts run weir token rekey.")
	if r.Equal {
		fmt.Fprintf(w, "But %s was an equal and has the key of the authority: with it, it can make itself other\n"+
			"certificates. To shut it out for good, stop all equals, remove ca.json, nodes.json and\njoined.json under DATA/tiers of each, and have all nodes join anew.\n", r.Name)
	}
	return nil
}

// when is a time as people read it, "-" for none.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05 MST")
}

// short is enough of a serial number to tell it from others.
func short(serial string) string {
	if serial == "" {
		return "-"
	}
	return serial[:min(len(serial), 10)]
}
