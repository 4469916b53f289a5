package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// limitedListener accepts while fewer than a number of connections are open;
// others wait in the kernel's queue.
type limitedListener struct {
	net.Listener
	slots chan struct{} // as many as may be open; a token in it is one that is
	done  chan struct{} // closed by Close
	once  sync.Once
}

// listen opens a TCP address for at most limit connections at once.
func listen(key, addr string, limit int) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s: %s is in use by another process", key, addr)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%s: no permission to listen on %s", key, addr)
	case err != nil:
		return nil, fmt.Errorf("%s: cannot listen on %s: %w", key, addr, err)
	}
	return &limitedListener{Listener: l, slots: make(chan struct{}, limit), done: make(chan struct{})}, nil
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		<-l.slots
		return nil, fmt.Errorf("a connection of type %T on a TCP listener", c)
	}
	return &limitedConn{TCPConn: tcp, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close implements net.Listener.
func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// limitedConn embeds the very type, not net.Conn: its ReadFrom is what lets
// the kernel copy files to the socket.
type limitedConn struct {
	*net.TCPConn
	release func()
}

var _ io.ReaderFrom = (*limitedConn)(nil)

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	err := c.TCPConn.Close()
	c.release()
	return err
}
