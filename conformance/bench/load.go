package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A question is what clients ask over and over.
type question struct {
	name    string
	path    string
	accept  string
	size    int64 // of the answer's body, which is checked
	clients int   // connections, each kept alive, one request at a time
	blob    bool  // count bytes, not answers
}

// A sample is one server's answers to one question in one round.
type sample struct {
	took     time.Duration
	answers  int
	bytes    int64
	cpu      time.Duration // the server's
	p50, p99 time.Duration
}

// measure asks q of s for about took, from as many connections as q says.
func measure(s *server, q question, took time.Duration) (sample, error) {
	clients := make([]*client, q.clients)
	for i := range clients {
		c, err := dial(s, q)
		if err != nil {
			return sample{}, err
		}
		defer c.conn.Close()
		clients[i] = c
	}
	before, err := s.cpu()
	if err != nil {
		return sample{}, err
	}
	start := time.Now()
	deadline := start.Add(took)
	errs := make([]error, len(clients))
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() { errs[i] = c.ask(deadline) })
	}
	wg.Wait()
	r := sample{took: time.Since(start)}
	if err := errors.Join(errs...); err != nil {
		return r, err
	}
	after, err := s.cpu()
	if err != nil {
		return r, err
	}
	r.cpu = after - before
	var all []time.Duration
	for _, c := range clients {
		all = append(all, c.times...)
	}
	slices.Sort(all)
	r.answers = len(all)
	r.bytes = int64(r.answers) * q.size
	r.p50, r.p99 = all[len(all)/2], all[len(all)*99/100]
	return r, nil
}

// A client is one connection. It does as little as it can: the load's core
// must not be what is measured.
type client struct {
	conn    *net.TCPConn
	raw     syscall.RawConn
	request []byte
	size    int64
	buf     []byte
	times   []time.Duration
}

func dial(s *server, q question) (*client, error) {
	conn, err := net.DialTimeout("tcp", s.addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	tcp := conn.(*net.TCPConn)
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	// The headers that docker sends.
	request := "GET " + q.path + " HTTP/1.1\r\nHost: " + s.addr + "\r\nUser-Agent: docker/28.0.0 go/go1.24 kernel/6.1 os/linux arch/amd64\r\n"
	if q.accept != "" {
		request += "Accept: " + q.accept + "\r\n"
	}
	if s.token != "" {
		request += "Authorization: Bearer " + s.token + "\r\n"
	}
	return &client{conn: tcp, raw: raw, request: []byte(request + "\r\n"), size: q.size, buf: make([]byte, 64<<10)}, nil
}

// ask asks until the deadline, and then waits for the answer it is at.
func (c *client) ask(deadline time.Time) error {
	for {
		start := time.Now()
		if start.After(deadline) && len(c.times) > 0 {
			return nil
		}
		if err := c.once(); err != nil {
			return err
		}
		c.times = append(c.times, time.Since(start))
	}
}

func (c *client) once() error {
	if _, err := c.conn.Write(c.request); err != nil {
		return err
	}
	n, head := 0, -1
	for head < 0 {
		m, err := c.conn.Read(c.buf[n:])
		if err != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		n += m
		head = bytes.Index(c.buf[:n], []byte("\r\n\r\n"))
		if head < 0 && n == len(c.buf) {
			return errors.New("an endless header")
		}
	}
	if !bytes.HasPrefix(c.buf, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("answered %.200q", c.buf[:n])
	}
	if got := contentLength(c.buf[:head+2]); got != c.size {
		return fmt.Errorf("an answer of %d bytes, not %d", got, c.size)
	}
	return c.discard(c.size - int64(n-head-4))
}

func contentLength(head []byte) int64 {
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			n, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return -1
}

// discard takes n bytes off the connection without copying them (MSG_TRUNC on
// a TCP socket, tcp(7)): whether they are right was checked before.
func (c *client) discard(n int64) error {
	if n < 0 {
		return errors.New("more than was asked for")
	}
	var failed error
	err := c.raw.Read(func(fd uintptr) bool {
		for n > 0 {
			m, _, err := unix.Recvfrom(int(fd), c.buf[:min(n, int64(len(c.buf)))], unix.MSG_TRUNC)
			switch {
			case err == unix.EAGAIN:
				return false
			case err == unix.EINTR:
				continue
			case err != nil:
				failed = err
				return true
			case m == 0:
				failed = io.ErrUnexpectedEOF
				return true
			}
			n -= int64(m)
		}
		return true
	})
	return errors.Join(err, failed)
}
