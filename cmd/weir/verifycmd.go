package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/ops"
)

// A verifyLine is what a running node says about its scrub, a line at a time:
// progress, then one with Done or Error.
type verifyLine struct {
	Blobs    int      `json:"blobs"`           // read so far
	Of       int      `json:"of"`              // in all
	Bytes    int64    `json:"bytes"`           // read so far
	OfBytes  int64    `json:"of_bytes"`        // in all
	Damaged  []string `json:"damaged"`         // digests found damaged, and dropped
	Repaired []string `json:"repaired"`        // of those, which have been fetched again
	Done     bool     `json:"done"`            // the last line
	Error    string   `json:"error,omitempty"` // why it is not all
}

// verifyFlags are the command line's.
type verifyFlags struct {
	config, data, output string
	rate                 string
}

func verifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Read all that is kept on disk, drop what is damaged and fetch it again",
		Long: "verify reads every blob on disk and compares it with its checksums and its digest.\n" +
			"What is damaged is dropped, and fetched again from behind. A running node does it\n" +
			"itself, asked at its ops address; the data of one that does not run is read here,\n" +
			"and what is dropped comes back when it is asked for. The exit code is 1 if damage\n" +
			"was found that could not be repaired, or if not all could be read.",
		Example: "  weir verify\n  weir verify -c weir.yaml --rate 50MiB\n  weir verify -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := untilSignal(cmd.Context())
			defer cancel()
			return verify(ctx, f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "configuration file of the node")
	cmd.Flags().StringVar(&f.data, "data", "", "data directory, instead of the configuration's")
	cmd.Flags().StringVar(&f.rate, "rate", "", "most bytes to read a second, such as 50MiB; without, as fast as it can")
	cmd.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
	return cmd
}

func verify(ctx context.Context, f verifyFlags, stdout, stderr io.Writer) error {
	if f.output != "text" && f.output != "json" {
		return usageError{fmt.Errorf("-o %s: neither text nor json", f.output)}
	}
	var rate Size
	if f.rate != "" {
		if err := rate.UnmarshalText([]byte(f.rate)); err != nil {
			return usageError{fmt.Errorf("--rate: %w", err)}
		}
	}
	c, err := readConfig(f.config)
	if err != nil {
		return err
	}
	if f.data != "" {
		c.Data = f.data
	}
	if c.Data, err = filepath.Abs(c.Data); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	show := newProgress(stderr, f.output == "json")
	last, err := verifyRunning(ctx, c, int64(rate), show.line)
	if errors.Is(err, errNotRunning) {
		last, err = verifyStopped(ctx, c, int64(rate), stderr, show.line)
	}
	show.end()
	if err != nil {
		return err
	}
	if err := last.print(stdout, f.output); err != nil {
		return err
	}
	switch n := len(last.Damaged) - len(last.Repaired); {
	case last.Error != "":
		return errors.New(last.Error)
	case n == 1:
		return errors.New("1 damaged blob was dropped and not fetched again; it comes back when it is asked for")
	case n > 1:
		return fmt.Errorf("%d damaged blobs were dropped and not fetched again; they come back when they are asked for", n)
	}
	return nil
}

// print is the result, for people or programs.
func (l verifyLine) print(w io.Writer, output string) error {
	if output == "json" {
		return json.NewEncoder(w).Encode(l)
	}
	_, err := fmt.Fprintf(w, "%d blobs, %s: %d damaged, %d repaired\n", l.Blobs, inMiB(l.Bytes), len(l.Damaged), len(l.Repaired))
	for _, d := range l.Damaged {
		what := "dropped "
		if slices.Contains(l.Repaired, d) {
			what = "repaired"
		}
		fmt.Fprintf(w, "%s  %s\n", what, d)
	}
	return err
}

var errNotRunning = errors.New("no weir is running there")

// opsRequest asks the node of configuration c, at its ops address.
func opsRequest(ctx context.Context, c *Config, method, path string) (*http.Response, error) {
	if c.Ops == opsOff {
		return nil, errNotRunning
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.Ops+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(ops.AdminHeader, "1")
	resp, err := http.DefaultClient.Do(req)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, errNotRunning
	case resp.StatusCode != http.StatusOK:
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return nil, fmt.Errorf("%s answered %s: %s", c.Ops, resp.Status, strings.TrimSpace(string(text)))
	}
	return resp, nil
}

// verifyRunning has the running node do it; errNotRunning if the one that
// answers there has other data.
func verifyRunning(ctx context.Context, c *Config, rate int64, show func(verifyLine)) (last verifyLine, err error) {
	status, err := opsRequest(ctx, c, http.MethodGet, "/admin/status")
	if err != nil {
		return last, err
	}
	defer status.Body.Close()
	var node nodeStatus
	if err := json.NewDecoder(io.LimitReader(status.Body, 1<<20)).Decode(&node); err != nil {
		return last, fmt.Errorf("%s does not answer like a weir: %w", c.Ops, err)
	}
	if node.Data != c.Data {
		return last, errNotRunning
	}
	path := "/admin/verify?" + url.Values{"rate": {strconv.FormatInt(rate, 10)}}.Encode()
	resp, err := opsRequest(ctx, c, http.MethodPost, path)
	if err != nil {
		return last, err
	}
	defer resp.Body.Close()
	lines := json.NewDecoder(bufio.NewReader(resp.Body))
	for !last.Done {
		last = verifyLine{}
		if err := lines.Decode(&last); err != nil {
			return last, fmt.Errorf("the node at %s broke off: %w", c.Ops, err)
		}
		if last.Error != "" && !last.Done { // from before it began
			return last, errors.New(last.Error)
		}
		show(last)
	}
	return last, nil
}

// verifyStopped reads the data of a node that does not run.
func verifyStopped(ctx context.Context, c *Config, rate int64, stderr io.Writer, show func(verifyLine)) (last verifyLine, err error) {
	if _, err := os.Stat(c.Data); err != nil {
		return last, fmt.Errorf("data directory %s: %w", c.Data, cause(err))
	}
	data, err := openData(c.Data)
	if err != nil {
		return last, err
	}
	defer data.Close()
	// What is damaged is in the result; the log is for failures of disks.
	log := newLog(LogConfig{Level: "error", Format: c.Log.Format}, stderr)
	disks, err := openDisks(c, data, log, registry.NoMeter{})
	if err != nil {
		return last, err
	}
	defer disks.Close()
	found, err := disks.Verify(ctx, rate, func(s cachetiers.Scrub) { show(lineOf(s)) })
	if ctx.Err() != nil {
		return last, ctx.Err()
	}
	for _, d := range disks.Status() {
		if d.State == cachetiers.DiskFailed && err == nil {
			err = fmt.Errorf("disk %s: %s", d.Path, d.Error)
		}
	}
	last = lineOf(found)
	if last.Done = true; err != nil {
		last.Error = err.Error()
	}
	return last, nil
}

// progress shows how far a scrub is: one line that changes on a terminal, one
// every few seconds elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	quiet    bool
	at       time.Time
	shown    bool
}

func newProgress(w io.Writer, quiet bool) *progress {
	p := &progress{w: w, terminal: isTerminal(w), quiet: quiet}
	if !p.terminal {
		p.at = time.Now() // what is done soon needs no line that stays
	}
	return p
}

// plainEvery is how often progress is shown where lines stay.
const plainEvery = 5 * time.Second

func (p *progress) line(l verifyLine) {
	now := time.Now()
	if p.quiet || l.Done || !p.terminal && now.Sub(p.at) < plainEvery || now.Sub(p.at) < 100*time.Millisecond {
		return
	}
	p.at, p.shown = now, true
	percent := int64(100)
	if l.OfBytes > 0 {
		percent = l.Bytes * 100 / l.OfBytes
	}
	text := fmt.Sprintf("verify: %3d%%  %d of %d blobs, %d damaged", percent, l.Blobs, l.Of, len(l.Damaged))
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", text)
		return
	}
	fmt.Fprintln(p.w, text)
}

func (p *progress) end() {
	if p.terminal && p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
