package reply_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

// TestFirstByte: what an answer waits for is given up before clients give up,
// for a reason that can be told; an answer that has begun takes its time.
func TestFirstByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var took time.Duration
		var cause error
		wait := func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			select {
			case <-r.Context().Done():
			case <-time.After(time.Minute):
			}
			took, cause = time.Since(start), context.Cause(r.Context())
		}
		serve := func(h http.HandlerFunc) {
			reply.Handler(h, reply.Options{Log: slog.New(slog.DiscardHandler)}).
				ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		}
		serve(wait)
		if took >= 25*time.Second || !errors.Is(cause, registry.ErrUnavailable) || registry.RetryAfter(cause) == 0 {
			t.Errorf("before the status line: given up after %v because of %v", took, cause)
		}
		serve(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			wait(w, r)
		})
		if took != time.Minute || cause != nil {
			t.Errorf("after the status line: given up after %v because of %v", took, cause)
		}
	})
}

// TestBodyThatNeverComes: a request that announces a body and does not send it
// loses its connection.
func TestBodyThatNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		l := &oneConn{c: server, done: make(chan struct{})}
		refuse := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMethodNotAllowed) })
		s := &http.Server{Handler: reply.Handler(refuse, reply.Options{Log: slog.New(slog.DiscardHandler)})}
		go s.Serve(l)
		fmt.Fprintf(client, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
		start := time.Now()
		br := bufio.NewReader(client)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
			t.Fatalf("%v, %v", resp, err)
		}
		_, _ = io.Copy(io.Discard, br) // until the server hangs up
		if took := time.Since(start); took > time.Minute {
			t.Errorf("the connection was held for %v", took)
		}
		client.Close()
		s.Close()
	})
}
