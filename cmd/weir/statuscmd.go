package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-registry/weir/cachetiers/peer"
	"github.com/weir-registry/weir/registry"
)

func statusCommand() *cobra.Command {
	var config, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how a running node is: its disks, and the nodes behind and beside it",
		Long: "status asks the running node, at its ops address, what it keeps on which disk and\n" +
			"which other nodes answer. The exit code is 1 if no node runs there.",
		Example: "  weir status\n  weir status -c weir.yaml\n  weir status -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return status(cmd.Context(), config, output, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVarP(&config, "config", "c", "", "configuration file of the node")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func status(ctx context.Context, config, output string, stdout io.Writer) error {
	if output != "text" && output != "json" {
		return usageError{fmt.Errorf("-o %s: neither text nor json", output)}
	}
	c, err := readConfig(config)
	if err != nil {
		return err
	}
	resp, err := opsRequest(ctx, c, http.MethodGet, "/admin/status")
	if errors.Is(err, errNotRunning) {
		return fmt.Errorf("no weir answers at its ops address, %s; start it with \"weir serve\", or name its configuration with -c", c.Ops)
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if output == "json" {
		_, err := io.Copy(stdout, resp.Body)
		return err
	}
	var s nodeStatus
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return fmt.Errorf("the answer of %s makes no sense: %w", c.Ops, err)
	}
	return s.print(stdout)
}

// print is the status for people.
func (s nodeStatus) print(w io.Writer) error {
	fmt.Fprintf(w, "weir %s, data in %s\n\n", s.Version, s.Data)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "DISK\tSTATE\tBLOBS\tUSED\tLIMIT\tNOTE")
	for _, d := range s.Disks {
		fmt.Fprintf(t, "%s\t%v\t%d\t%v\t%v\t%s\n", d.Path, d.State, d.Blobs, inMiB(d.Bytes), Size(d.Limit), d.Error)
	}
	for _, group := range []struct {
		head  string
		nodes []peer.State
	}{{"BEHIND", s.Next}, {"BESIDE", s.Peers}} {
		if len(group.nodes) == 0 {
			continue
		}
		fmt.Fprintf(t, "\n%s\tSTATE\tSINCE\tROUND TRIP\tNOTE\n", group.head)
		for _, n := range group.nodes {
			fmt.Fprintln(t, nodeLine(n))
		}
	}
	if len(s.Front) > 0 {
		fmt.Fprintf(t, "\nIN FRONT\tVERSION\tHASH\tHEARD\tVIA\tNOTE\n")
		for _, f := range s.Front {
			heard := max(time.Since(f.Heard), 0)
			fmt.Fprintf(t, "%s\t%d\t%.12s\t%s\t%s\t%s\n", f.Node, f.Version, f.Hash, ago(heard.Round(100*time.Millisecond)), orDash(strings.Join(f.Via, " ")), s.note(f.Standing, heard))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%s\n", s.Entitlements)
	if s.Waiting > 0 {
		fmt.Fprintf(w, "\n%d blobs are still to be written to the origin store\n", s.Waiting)
	}
	return nil
}

// note is what is wrong with the copy of a node in front.
func (s nodeStatus) note(is registry.Standing, heard time.Duration) string {
	own := s.Entitlements
	switch {
	case heard > quiet:
		return "silent"
	case !is.Whole():
		return "has no copy yet"
	case is.Version < own.Version:
		return "behind"
	case is.Version == own.Version && is.Hash != own.Hash:
		return "differs"
	}
	return ""
}

// quiet is for how long a copy may go unconfirmed before people are told.
const quiet = 3 * time.Second

// unknown is how old a copy is that was never confirmed, or before a clock was set
// back, at least.
const unknown = 10 * 365 * 24 * time.Hour

// String is for people: which copy of the entitlements, how old it is, and what
// is wrong with it.
func (s entitlementStatus) String() string {
	if !s.Whole() {
		text := "entitlements: no whole copy has come yet, and nobody is admitted"
		if s.Trouble != "" {
			text += "\n  " + s.Trouble
		}
		return text
	}
	text := fmt.Sprintf("entitlements: version %d, %d records, hash %.12s", s.Version, s.Records, s.Hash)
	// What nobody knows is more than a Duration holds.
	lag := time.Duration(min(s.Lag, (10*unknown).Seconds()) * float64(time.Second)).Round(100 * time.Millisecond)
	switch {
	case s.Authority:
		text += ", from this node's own database"
		if s.Trouble != "" {
			text += "\n  " + s.Trouble + "\n  what it had when it last answered counts, which was " + ago(lag)
		} else if lag > quiet {
			text += "\n  the database does not answer: it did " + ago(lag) + "; what it had then counts, and accounts cannot be changed"
		}
		return text
	case s.Following != "":
		text += ", confirmed " + ago(lag) + " by way of " + s.Following
	default:
		text += ", confirmed " + ago(lag) + "\n  no node behind can be followed"
	}
	if len(s.Others) > 0 {
		text += "\n  of another database than this copy, and not followed: " + strings.Join(s.Others, ", ") +
			"\n  to follow that from now on, stop this node, remove the file entitlements in its data directory and start it again"
	}
	if s.Past {
		text += "\n  that is longer ago than access.max_staleness, and access.past says what is refused until a node behind confirms it"
	}
	return text
}

// ago is for people.
func ago(d time.Duration) string {
	if d > unknown {
		return "a time ago that nobody knows"
	}
	return d.String() + " ago"
}

// inMiB is a number of bytes that nobody chose.
func inMiB(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func nodeLine(n peer.State) string {
	state, since, rtt := "down", "", ""
	switch {
	case n.Self:
		return strings.Join([]string{n.Address, "this node", "", "", ""}, "\t")
	case n.Up:
		state = "up"
	}
	if !n.Since.IsZero() {
		since = n.Since.UTC().Format(time.DateTime)
	}
	if n.Up && n.RTT > 0 {
		rtt = n.RTT.Round(100 * time.Microsecond).String()
	}
	return strings.Join([]string{n.Address, state, since, rtt, n.Error}, "\t")
}
