package lab

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// weirReady is how long weir may take until it is ready; a race-enabled
	// build on a busy machine has been seen to take seconds.
	weirReady = 20 * time.Second
)

// A Weir is the real binary, running with a configuration of its own.
type Weir struct {
	*Process
	// Addr is where its clients connect, and URL that with "http://" before.
	Addr, URL string
	// Ops is the host:port of its metrics and health.
	Ops string
	// Data is its data directory, Config its configuration file.
	Data, Config string

	t   testing.TB
	bin string
}

// built is the binary under test: built once, however many tests start it.
var built = sync.OnceValues(func() (string, error) {
	root, err := findRoot()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "bin", "weir-under-test")
	args := append([]string{"build"}, strings.Fields(os.Getenv("WEIR_BUILD_FLAGS"))...)
	cmd := exec.Command("go", append(args, "-o", bin, "./cmd/weir")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/weir: %v\n%s", err, out)
	}
	return bin, nil
})

// Binary is the path of weir's binary: $WEIR_BIN, or what go build makes of
// the working tree (with $WEIR_BUILD_FLAGS, "-race" for instance).
func Binary(t testing.TB) string {
	t.Helper()
	if bin := os.Getenv("WEIR_BIN"); bin != "" {
		return bin
	}
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// StartWeir starts weir and waits until it is ready. config is the YAML of its
// configuration without listen, ops and data, which are set here: two free
// loopback ports and a new directory.
func StartWeir(t testing.TB, config string) *Weir {
	t.Helper()
	return StartWeirIn(t, t.TempDir(), config)
}

// StartWeirIn is [StartWeir] with a data directory of the caller's.
func StartWeirIn(t testing.TB, data, config string) *Weir {
	t.Helper()
	w := NewWeir(t, data, config)
	w.Start()
	return w
}

// NewWeir writes weir's configuration and does not start it: for what is to go
// wrong at the start.
func NewWeir(t testing.TB, data, config string) *Weir {
	t.Helper()
	w := &Weir{t: t, Addr: FreeAddr(t), Ops: FreeAddr(t), Data: data, bin: Binary(t)}
	w.URL = "http://" + w.Addr
	w.Config = filepath.Join(t.TempDir(), "weir.yaml")
	w.Configure(config)
	return w
}

// Configure replaces the configuration; it counts from the next start.
func (w *Weir) Configure(config string) {
	w.t.Helper()
	text := fmt.Sprintf("listen: %s\nops: %s\ndata: %q\n%s\n", w.Addr, w.Ops, w.Data, config)
	if err := os.WriteFile(w.Config, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// Start starts weir, which must not be running, and waits until it is ready.
func (w *Weir) Start() {
	w.t.Helper()
	w.Launch()
	w.Ready()
}

// Launch starts weir, which must not be running, and waits for nothing.
func (w *Weir) Launch() {
	w.t.Helper()
	p := Start(w.t, Command{Path: w.bin, Args: []string{"serve", "-c", w.Config}})
	w.Process = p
	w.t.Cleanup(func() { p.Stop(); p.sound() })
}

// Ready waits until weir, which has been launched, is ready.
func (w *Weir) Ready() {
	w.t.Helper()
	// weir listens before it has opened what it keeps, so that early clients
	// wait instead of being refused: it is up when it says that it is.
	w.ready(weirReady, "be ready on "+w.Addr, func() error {
		resp, err := http.Get("http://" + w.Ops + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return accepts(w.Addr)
	})
}

// sound fails the test if the log has what no test may cause: a data race (of
// a binary built with -race) or a panic.
func (p *Process) sound() {
	p.t.Helper()
	log := p.Log()
	for _, sign := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
		if _, after, ok := strings.Cut(log, sign); ok {
			p.t.Errorf("%s (pid %d): %s%s", p.name, p.Pid(), sign, after[:min(len(after), logTail)])
		}
	}
}

// Restart stops weir as an operator would and starts it again on the same
// addresses and data.
func (w *Weir) Restart() {
	w.t.Helper()
	w.Stop()
	w.Start()
}

// Metrics is what the ops address says under /metrics.
func (w *Weir) Metrics() string {
	w.t.Helper()
	resp, err := http.Get("http://" + w.Ops + "/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		w.t.Fatalf("metrics: %s, %v", resp.Status, err)
	}
	return string(b)
}

// Metric is the sum of all series of one metric whose labels contain each of
// the given texts, such as `tier="disk"`. A metric without such a series is 0.
func (w *Weir) Metric(name string, labels ...string) float64 {
	w.t.Helper()
	var sum float64
	for line := range strings.Lines(w.Metrics()) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		cut := strings.LastIndexByte(rest, ' ')
		value, err := strconv.ParseFloat(rest[cut+1:], 64)
		if err != nil {
			w.t.Fatalf("metric %q: %v", line, err)
		}
		matches := true
		for _, l := range labels {
			matches = matches && strings.Contains(rest[:cut], l)
		}
		if matches {
			sum += value
		}
	}
	return sum
}
