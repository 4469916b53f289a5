package wan

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// An Asked is one request that an [Upstream] got, and what it answered.
type Asked struct {
	Method, Path string
	// Range is the header's; "": all was asked for.
	Range string
	// Status is 0 until the answer's header is out.
	Status int
	// Offset is where in the blob the answer's body begins, Bytes how much of
	// it has been written. What the kernel still had when a connection broke
	// is counted here and not by a [Link].
	Offset, Bytes int64
	// At is when the request came.
	At time.Time
}

func (u *Upstream) note(r *http.Request) *Asked {
	a := &Asked{Method: r.Method, Path: r.URL.Path, Range: r.Header.Get("Range"), At: time.Now()}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked = append(u.asked, a)
	return a
}

// Reset forgets what has been asked so far.
func (u *Upstream) Reset() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked = nil
}

// Asked is what has been asked since the start or [Upstream.Reset], of one
// method ("" all) and with a path that contains part.
func (u *Upstream) Asked(method, part string) []Asked {
	u.mu.Lock()
	defer u.mu.Unlock()
	var found []Asked
	for _, a := range u.asked {
		if (method == "" || a.Method == method) && strings.Contains(a.Path, part) {
			found = append(found, *a)
		}
	}
	return found
}

// A Read is how often and how much of a blob has been asked for.
type Read struct {
	// Requests is the number of GETs.
	Requests int
	// Bytes is what was written in answer to them, Twice how much of that
	// had been written before.
	Bytes, Twice int64
}

// Read is what has been asked of one blob.
func (u *Upstream) Read(d digest.Digest) Read {
	var r Read
	var runs [][2]int64
	for _, a := range u.Asked(http.MethodGet, d.String()) {
		r.Requests++
		r.Bytes += a.Bytes
		if a.Status < 300 {
			runs = append(runs, [2]int64{a.Offset, a.Offset + a.Bytes})
		}
	}
	slices.SortFunc(runs, func(a, b [2]int64) int { return int(a[0] - b[0]) })
	end := int64(0)
	for _, run := range runs {
		r.Twice += max(0, min(end, run[1])-run[0])
		end = max(end, run[1])
	}
	return r
}

// Story is one line for each request, for a failed test to tell.
func (u *Upstream) Story() string {
	var b strings.Builder
	for _, a := range u.Asked("", "") {
		fmt.Fprintf(&b, "  %s %s %s -> %d, %d bytes from %d\n", a.Method, a.Path, a.Range, a.Status, a.Bytes, a.Offset)
	}
	return b.String()
}

// noted notes where in a blob an answer begins: the last seek before a read.
type noted struct {
	*reader
	u *Upstream
	a *Asked
}

func (n *noted) Seek(offset int64, whence int) (int64, error) {
	at, err := n.reader.Seek(offset, whence)
	n.u.mu.Lock()
	defer n.u.mu.Unlock()
	n.a.Offset = at
	return at, err
}

// counted counts what is written. It hides the connection's ReadFrom, or
// nothing would pass here.
type counted struct {
	http.ResponseWriter
	u *Upstream
	a *Asked
}

func (c *counted) WriteHeader(status int) {
	c.u.mu.Lock()
	c.a.Status = status
	c.u.mu.Unlock()
	c.ResponseWriter.WriteHeader(status)
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	c.a.Bytes += int64(n)
	return n, err
}

// moody is a listener whose connections are as the upstream's mode has them.
type moody struct {
	net.Listener
	u *Upstream
}

func (m moody) Accept() (net.Conn, error) {
	c, err := m.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tcp := c.(*net.TCPConn)
	_ = tcp.SetWriteBuffer(socketBuffer)
	return &moodyConn{TCPConn: tcp, u: m.u}, nil
}

type moodyConn struct {
	*net.TCPConn
	u       *Upstream
	line    bucket
	carried int64 // by Write, which one goroutine calls at a time
}

// Write implements net.Conn.
func (c *moodyConn) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		mode := c.u.moodNow()
		n := min(piece(mode.Rate), len(p)-sent)
		if mode.ResetAfter > 0 {
			if c.carried >= mode.ResetAfter {
				_ = c.SetLinger(0)
				c.Close()
				return sent, net.ErrClosed
			}
			n = int(min(int64(n), mode.ResetAfter-c.carried))
		}
		if out := c.line.take(time.Now(), n, mode.Rate); mode.Rate > 0 {
			time.Sleep(time.Until(out))
		}
		m, err := c.TCPConn.Write(p[sent : sent+n])
		sent, c.carried = sent+m, c.carried+int64(m)
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}
