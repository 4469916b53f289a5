package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"
)

// pollEvery is how often a condition is looked at.
const pollEvery = 10 * time.Millisecond

// Eventually waits until ok returns nil, and fails the test with ok's last
// error if that takes longer than limit.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() error) {
	t.Helper()
	if err := poll(limit, ok); err != nil {
		t.Fatalf("%s: not within %v: %v", what, limit, err)
	}
}

// fatal is an error that waiting will not mend.
type fatal struct{ error }

func poll(limit time.Duration, ok func() error) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil || errors.As(err, new(fatal)) {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return err
		}
	}
}

// accepts is a condition: something listens on addr.
func accepts(addr string) error {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

// FreeAddr is a loopback address on which nothing listens. Its port is below
// the range from which the kernel takes ports by itself, so that it stays free
// while a process is being restarted. It is found by asking and not by
// listening: a listener would live on for a moment in any child that is being
// started just then, and the address would be taken.
func FreeAddr(t testing.TB) string {
	t.Helper()
	const low, high = 10240, 32000
	for range 200 {
		addr := fmt.Sprintf("127.0.0.1:%d", low+rand.IntN(high-low))
		if err := accepts(addr); errors.Is(err, syscall.ECONNREFUSED) {
			return addr
		}
	}
	t.Fatalf("no free port on 127.0.0.1")
	return ""
}
