package wan

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A clock waits for a moment with the kernel's precision. The runtime's timers
// are late by up to a millisecond when the process is idle, since its poller
// counts in those; three links crossed twice would add that up to what is then
// taken for the fault of the nodes. It is for one goroutine.
type clock struct {
	file *os.File
	buf  [8]byte
}

func newClock() (*clock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &clock{file: os.NewFile(uintptr(fd), "timer")}, nil
}

// until waits until at, or until the clock is closed, which it reports by
// false.
func (c *clock) until(at time.Time) bool {
	d := time.Until(at)
	if d <= 0 {
		return true
	}
	raw, err := c.file.SyscallConn()
	if err != nil {
		return false
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.TimerfdSettime(int(fd), 0, &spec, nil) }); err != nil || serr != nil {
		return false
	}
	_, err = c.file.Read(c.buf[:])
	return err == nil
}

// close ends a wait, and makes all later ones fail.
func (c *clock) close() { c.file.Close() }
