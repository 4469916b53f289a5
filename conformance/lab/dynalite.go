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
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	p = Start(t, Command{Path: Tool(t, "dynalite"),
		Args: []string{"--host", host, "--port", port, "--createTableMs", "0", "--deleteTableMs", "0"}})
	p.ready(20*time.Second, "answer on "+addr, func() error {
		resp, err := http.Get("http://" + addr)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return p, addr
}
