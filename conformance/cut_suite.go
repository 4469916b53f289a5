package conformance

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// A CutCase is a GET of much more than a connection holds.
type CutCase struct {
	Name   string
	Target string      // path and query
	Header http.Header // beside User-Agent
	Status int
	// Files reports that the kernel is to copy.
	Files bool
}

// cutWithin is how soon a transfer that is revoked must have ended.
const cutWithin = time.Second

// TestCut checks that handler ends what it sends as soon as warden has revoked it:
// to clients that read and to those that do not. Clients are told apart by
// registry.Call.Agent. handler logs to the Logger it is made with.
func TestCut(t *testing.T, warden *Warden, handler func(log *slog.Logger) http.Handler, writeTimeout time.Duration, cases []CutCase) {
	var log lines
	s := serveTracked(t, handler(slog.New(slog.NewTextHandler(&log, nil))), writeTimeout)
	for _, c := range cases {
		for _, reads := range []bool{true, false} {
			what := map[bool]string{true: ", read", false: ", stalled"}[reads]
			t.Run(c.Name+what, func(t *testing.T) {
				s.do(t, c, "first") // what that leaves (connections to upstreams) stays
				before := runtime.NumGoroutine()
				agent := strings.NewReplacer(" ", "-", ",", "").Replace(c.Name + what)
				client, body, server := s.get(t, c, agent)
				defer client.Close()
				if reads {
					if _, err := io.CopyN(io.Discard, body, 1<<20); err != nil {
						t.Fatal(err)
					}
				} else {
					server.waitBlocked(t)
				}
				if c.Files != (server.files.Load() > 0) {
					t.Errorf("the kernel was given files to copy %d times", server.files.Load())
				}
				log.reset()
				revoked := time.Now()
				warden.Revoke(registry.Errorf(registry.ErrDenied, "taken back"), func(c *registry.Call) bool { return c.Agent == agent })
				if !reads {
					// The server has given up before the client reads on.
					select {
					case <-server.closed:
					case <-time.After(10 * cutWithin):
						t.Fatal("not cut")
					}
				}
				_, err := io.Copy(io.Discard, body)
				if took := time.Since(revoked); took > cutWithin {
					t.Errorf("cut after %v", took)
				}
				// A reset leaves out what the kernel still has to send, which of a file can
				// be seconds of a slow line. What is written from memory net/http has
				// closed in its own way by then.
				if !isReset(err) && (c.Files || !errors.Is(err, io.ErrUnexpectedEOF)) {
					t.Errorf("the client was told %v, which is not that something is missing, or left out", err)
				}
				<-server.closed
				Eventually(t, "the log says why", func() bool { return strings.Contains(log.String(), "revoked: taken back") })
				Eventually(t, "nothing is watched any more", func() bool { return warden.Watching() == 0 })
				client.Close()
				Eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
				resp := s.do(t, c, agent)
				if resp.StatusCode != http.StatusForbidden {
					t.Errorf("asked again: %d", resp.StatusCode)
				}
			})
		}
	}
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && strings.Contains(op.Error(), "reset")
}

// Eventually waits for a condition, for 10 s.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("not within 10 s: " + what)
		}
	}
}

// lines is a log in memory.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lines) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

// trackedServer is an http.Server whose connections can be watched.
type trackedServer struct {
	addr  string
	conns chan *trackedConn
}

// trackedConn is a connection of the server's; net/http finds its ReadFrom.
type trackedConn struct {
	*net.TCPConn
	writes atomic.Int64 // begun and ended: odd while one is under way
	files  atomic.Int64
	once   sync.Once
	closed chan struct{}
}

func (c *trackedConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	defer c.writes.Add(1)
	return c.TCPConn.Write(p)
}

func (c *trackedConn) ReadFrom(r io.Reader) (int64, error) {
	if lr, ok := r.(*io.LimitedReader); ok {
		if _, ok := lr.R.(*os.File); ok {
			c.files.Add(1)
		}
	}
	c.writes.Add(1)
	defer c.writes.Add(1)
	return c.TCPConn.ReadFrom(r)
}

func (c *trackedConn) Close() error {
	defer c.once.Do(func() { close(c.closed) })
	return c.TCPConn.Close()
}

// waitBlocked waits until a write has been under way for some time.
func (c *trackedConn) waitBlocked(t *testing.T) {
	t.Helper()
	last, same := int64(0), 0
	Eventually(t, "the server waits for the client", func() bool {
		n := c.writes.Load()
		if n != last || n%2 == 0 {
			last, same = n, 0
		}
		same++
		return same > 20
	})
}

type trackedListener struct {
	net.Listener
	conns chan *trackedConn
}

func (l trackedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tc := &trackedConn{TCPConn: c.(*net.TCPConn), closed: make(chan struct{})}
	l.conns <- tc
	return tc, nil
}

func serveTracked(t *testing.T, h http.Handler, writeTimeout time.Duration) *trackedServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &trackedServer{addr: l.Addr().String(), conns: make(chan *trackedConn, 16)}
	server := &http.Server{Handler: h, WriteTimeout: writeTimeout, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(trackedListener{l, s.conns}) }()
	t.Cleanup(func() { server.Close(); <-done })
	return s
}

// get sends a GET on a connection of its own and reads the header of its answer.
func (s *trackedServer) get(t *testing.T, c CutCase, agent string) (client net.Conn, body io.Reader, server *trackedConn) {
	t.Helper()
	resp, client, server := s.send(t, c, agent)
	if resp.StatusCode != c.Status {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		t.Fatalf("%s: %d %s, want %d", c.Target, resp.StatusCode, text, c.Status)
	}
	return client, resp.Body, server
}

func (s *trackedServer) send(t *testing.T, c CutCase, agent string) (*http.Response, net.Conn, *trackedConn) {
	t.Helper()
	client, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = client.(*net.TCPConn).SetReadBuffer(64 << 10)
	_ = client.SetDeadline(time.Now().Add(30 * time.Second))
	server := <-s.conns
	req, err := http.NewRequest(http.MethodGet, "http://"+s.addr+c.Target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range c.Header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", agent)
	if err := req.Write(client); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(client), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp, client, server
}

func (s *trackedServer) do(t *testing.T, c CutCase, agent string) *http.Response {
	t.Helper()
	resp, client, server := s.send(t, c, agent)
	client.Close()
	<-server.closed
	return resp
}
