package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// wanNamespace is apart from the other one: the two may run at once.
const wanNamespace = "weir-bench-wan"

// chain runs the scenarios of a chain of nodes in full size, and prints what
// they measure. A bound that is not kept is an error.
func chain(pattern string) error {
	dir, err := os.MkdirTemp("", "weir-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tests := filepath.Join(dir, "chain.test")
	build := exec.Command("go", "test", "-c", "-o", tests, "./conformance")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("go test -c ./conformance, in the repository's directory: %w", err)
	}
	bin, err := weirBinary()
	if err != nil {
		return err
	}
	fmt.Printf("%s; all nodes, clients and lines on these cores, reno\n", machine())
	return inNamespace(wanNamespace, func() error {
		cmd := exec.Command("ip", "netns", "exec", wanNamespace, tests, "-test.run", pattern, "-test.v", "-test.count", "1", "-test.timeout", "60m")
		cmd.Dir = "conformance"
		cmd.Env = append(os.Environ(), "WEIR_SOAK=1", "WEIR_BIN="+bin)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		return errors.Join(relay(out, os.Stdout), cmd.Wait())
	})
}

// weirBinary is the binary under test.
func weirBinary() (string, error) {
	bin := os.Getenv("WEIR_BIN")
	if bin == "" {
		bin = filepath.Join("bin", "weir")
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(bin); err != nil {
		return "", fmt.Errorf("%w: run make build", err)
	}
	return bin, nil
}

// relay passes on what tests say, without the frame that package testing puts
// around it.
func relay(from io.Reader, to io.Writer) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if _, err := fmt.Fprintln(to, unframed(lines.Text())); err != nil {
			return err
		}
	}
	return lines.Err()
}

// unframed is one line without indentation, and without the file and line at
// its beginning.
func unframed(line string) string {
	text := strings.TrimLeft(line, " ")
	if name, said, ok := strings.Cut(text, ".go:"); ok && !strings.ContainsAny(name, " /") {
		_, said, _ = strings.Cut(said, ":")
		return strings.TrimPrefix(said, " ")
	}
	if text, ok := strings.CutPrefix(text, "=== RUN   "); ok {
		return "\n== " + text
	}
	return text
}
