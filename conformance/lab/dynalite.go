package lab

import (
	"net"
	"net/http"
	"testing"
	"time"
)

// StartDynalite starts an empty server that speaks like DynamoDB, keeps its
// tables in memory, and forgets them when the test ends. It takes any
// credentials. It returns once it answers; its URL is "http://" and addr.
func StartDynalite(t testing.TB) (p *Process, addr string) {
	t.Helper()
	addr = FreeAddr(t)
	return StartDynaliteOn(t, addr, ""), addr
}

// StartDynaliteOn is [StartDynalite] at an address, with its tables in a
// directory, so that another one finds them after its end; "": in memory.
func StartDynaliteOn(t testing.TB, addr, dir string) *Process {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--host", host, "--port", port, "--createTableMs", "0", "--deleteTableMs", "0"}
	if dir != "" {
		args = append(args, "--path", dir)
	}
	p := Start(t, Command{Path: Tool(t, "dynalite"), Args: args})
	p.ready(20*time.Second, "answer on "+addr, func() error {
		resp, err := http.Get("http://" + addr)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return p
}
