package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// stopLimit is how long a process may take to stop when it is asked to.
	stopLimit = 30 * time.Second
	// logTail is how much of a process's log a failed test prints.
	logTail = 8 << 10
)

// A Command says what to start.
type Command struct {
	// Path is the program, as [Tool] found it.
	Path string
	Args []string
	// Env is added to this process's environment.
	Env []string
	// Dir is where it runs; "": a new empty directory.
	Dir string
}

// A Process runs until the test ends, or until it is stopped. Its methods are
// for the test's goroutine.
type Process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	log  string // the file that takes stdout and stderr
	done chan struct{}
	err  error // of Wait; written before done is closed
}

// Start starts a process in a process group of its own. When the test ends it
// is stopped by SIGTERM; if this process dies, the kernel kills it.
func Start(t testing.TB, c Command) *Process {
	t.Helper()
	dir := c.Dir
	if dir == "" {
		dir = t.TempDir()
	}
	name := filepath.Base(c.Path)
	log, err := os.CreateTemp(t.TempDir(), name+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), c.Env...)
	// A file and not a pipe: a grandchild that lives on must not keep Wait
	// waiting for the end of its output.
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	p := &Process{t: t, name: name, cmd: cmd, log: log.Name(), done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			t.Logf("log of %s (pid %d), its end:\n%s", name, p.Pid(), tail(p.Log(), logTail))
		}
	})
	return p
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Log is what the process has written so far, stdout and stderr together.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		p.t.Errorf("log of %s: %v", p.name, err)
	}
	return string(b)
}

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode is the status the process ended with: negative if it runs or was
// killed.
func (p *Process) ExitCode() int {
	if p.Running() {
		return -1
	}
	return p.cmd.ProcessState.ExitCode()
}

// Stop asks the process to stop and waits until it has; one that does not in
// time fails the test and is killed.
func (p *Process) Stop() {
	p.t.Helper()
	if !p.Running() {
		return
	}
	p.signal(syscall.SIGTERM)
	timer := time.NewTimer(stopLimit)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.t.Errorf("%s did not stop within %v of SIGTERM", p.name, stopLimit)
		p.Kill9()
	}
}

// Kill9 kills the process so that it can clean up nothing, and waits until it
// is gone.
func (p *Process) Kill9() {
	p.t.Helper()
	if !p.Running() {
		return
	}
	p.signal(syscall.SIGKILL)
	<-p.done
}

// Freeze stops the process in its tracks: who connects to it is connected, and
// hears nothing. Thaw, or the end of the test, lets it go on.
func (p *Process) Freeze() {
	p.t.Helper()
	p.t.Cleanup(p.Thaw) // before it is asked to stop
	p.signal(syscall.SIGSTOP)
}

// Thaw ends Freeze.
func (p *Process) Thaw() {
	p.t.Helper()
	p.signal(syscall.SIGCONT)
}

func (p *Process) signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal %v to %s: %v", s, p.name, err)
	}
}

// ready waits for ok, and fails the test at once if the process ends before.
func (p *Process) ready(limit time.Duration, what string, ok func() error) {
	p.t.Helper()
	err := poll(limit, func() error {
		if !p.Running() {
			return fatal{fmt.Errorf("%s ended: %v", p.name, p.err)}
		}
		return ok()
	})
	if err != nil {
		p.t.Fatalf("%s: %s: %v\n%s", p.name, what, err, tail(p.Log(), logTail))
	}
}

// A Result is what a command that has ended left.
type Result struct {
	Stdout, Stderr string
	// Code is the exit status; negative if a signal ended the command.
	Code int
}

// Run runs a command to its end, at most limit, and fails the test if its
// status is not zero.
func Run(t testing.TB, limit time.Duration, c Command) Result {
	t.Helper()
	r := Try(t, limit, c)
	if r.Code != 0 {
		t.Fatalf("%s %s: status %d\n%s%s", filepath.Base(c.Path), strings.Join(c.Args, " "), r.Code,
			tail(r.Stdout, logTail), tail(r.Stderr, logTail))
	}
	return r
}

// Try runs a command to its end and leaves it to the caller what its status
// means. A command that takes longer than limit is killed and fails the test.
func Try(t testing.TB, limit time.Duration, c Command) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	dir := c.Dir
	if dir == "" {
		dir = t.TempDir()
	}
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Env = dir, append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// The whole group: a client's helper processes must not keep the pipes.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%s %s: not done within %v\n%s%s", filepath.Base(c.Path), strings.Join(c.Args, " "), limit,
			tail(stdout.String(), logTail), tail(stderr.String(), logTail))
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", c.Path, err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}
