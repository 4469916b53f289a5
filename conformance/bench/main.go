// Command bench puts weir beside nginx's proxy_cache and distribution's proxy
// mode: the same content, cached by all three, asked for by the same clients in
// one run on one machine. It prints a table and keeps nothing.
//
// The machine's noise is met in three ways. Every server runs on one core
// while the load runs on another; the servers take turns, round by round, and
// medians are shown; and each figure is given as a ratio to nginx as well.
// Everything runs in a network namespace of its own that is set to reno: bbr,
// where it is the default, paces even the loopback.
//
// It wants root, Linux, two cores, nginx, taskset and ip, and what
// conformance/setup.sh installs. BENCH_ROUNDS and BENCH_SECONDS say how often
// and for how long each pair of server and question is measured.
//
// With -wan it measures a chain of weirs instead, with slow lines between
// them, and prints tables and charts: the scenarios that the tests run in small
// size (conformance/chain_*_test.go), in full size, with their bounds. It then
// wants root, Linux and ip only. -run takes some of them, by a pattern.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

const (
	namespace   = "weir-bench"
	serverCore  = "0"
	loadCore    = "1"
	insideEnv   = "WEIR_BENCH_INSIDE"
	defRounds   = 5
	defSeconds  = 1.5
	startWithin = 20 * time.Second
)

func main() {
	wan := flag.Bool("wan", false, "measure a chain of nodes with slow lines between them")
	pattern := flag.String("run", "^TestChain", "with -wan, which scenarios")
	flag.Parse()
	run := outside
	switch {
	case *wan:
		run = func() error { return chain(*pattern) }
	case os.Getenv(insideEnv) != "":
		run = inside
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// outside makes the namespace and runs this program in it, on the load's core.
func outside() error {
	if runtime.NumCPU() < 2 {
		return errors.New("one core for the server and one for the load are needed")
	}
	for _, tool := range []string{"taskset", "nginx"} {
		if _, err := find(tool); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return inNamespace(namespace, func() error {
		cmd := exec.Command("ip", "netns", "exec", namespace, "taskset", "-c", loadCore, self)
		cmd.Env = append(os.Environ(), insideEnv+"=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return cmd.Run()
	})
}

// inNamespace runs run while there is a network namespace of this name, whose
// loopback is up and not paced.
func inNamespace(name string, run func() error) error {
	if os.Getuid() != 0 {
		return errors.New("a network namespace needs root")
	}
	if _, err := find("ip"); err != nil {
		return err
	}
	// What a run that was killed left behind.
	_ = exec.Command("ip", "netns", "del", name).Run()
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		return fmt.Errorf("ip netns add: %v: %s", err, out)
	}
	defer exec.Command("ip", "netns", "del", name).Run()
	for _, args := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"sh", "-c", "echo reno >/proc/sys/net/ipv4/tcp_congestion_control"},
	} {
		cmd := exec.Command("ip", append([]string{"netns", "exec", name}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %v: %s", args, err, out)
		}
	}
	// The child is told to stop by the same ^C; this process stays to clean up.
	signal.Ignore(os.Interrupt)
	return run()
}

// inside starts the servers, measures and prints.
func inside() error {
	rounds, err := setting("BENCH_ROUNDS", defRounds)
	if err != nil {
		return err
	}
	seconds, err := setting("BENCH_SECONDS", defSeconds)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "weir-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	lab := &bench{dir: dir}
	defer lab.stop()
	if err := lab.start(); err != nil {
		return err
	}
	took := time.Duration(seconds * float64(time.Second))
	fmt.Printf("%s; server on one core, load on another, reno; %d interleaved rounds of %v, medians\n\n",
		machine(), int(rounds), took)
	results := map[string][]sample{}
	for round := range int(rounds) {
		for _, q := range lab.questions() {
			for i := range lab.servers {
				// Another server begins each round.
				s := lab.servers[(i+round)%len(lab.servers)]
				r, err := measure(s, q, took)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", s.name, q.name, err)
				}
				results[q.name+"/"+s.name] = append(results[q.name+"/"+s.name], r)
			}
		}
	}
	lab.print(results)
	return nil
}

func setting(name string, otherwise float64) (float64, error) {
	text := os.Getenv(name)
	if text == "" {
		return otherwise, nil
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || v <= 0 || v > 1000 {
		return 0, fmt.Errorf("%s=%q is not a number above 0", name, text)
	}
	return v, nil
}

// find finds a program: in .tools, where setup.sh puts some, or in PATH.
func find(name string) (string, error) {
	root, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := root; ; dir = filepath.Dir(dir) {
		path := filepath.Join(dir, ".tools", "bin", name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	for _, n := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(n); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: run conformance/setup.sh", name)
}
