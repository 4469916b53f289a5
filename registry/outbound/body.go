package outbound

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/weir-registry/weir/registry"
)

// A body is a response's, with the idle timeout and with kinds for its errors.
// Only the time spent waiting in Read counts.
type body struct {
	rc     io.ReadCloser
	c      *Client
	idle   time.Duration
	timer  *time.Timer // cancels; runs only during a Read
	silent atomic.Bool // the timer fired
	ctx    context.Context
	cancel context.CancelCauseFunc
	url    string // for the log
	host   string // that it comes from, after redirects
	slot   *slot  // released when nothing more can come
	q      question
}

// newBody is the body of resp, the answer to req, for as long as it holds slot.
func newBody(ctx context.Context, cancel context.CancelCauseFunc, c *Client, req *http.Request, resp *http.Response, q question, slot *slot) *body {
	from := req.URL
	if resp.Request != nil {
		from = resp.Request.URL
	}
	b := &body{rc: resp.Body, c: c, host: HostPort(from), idle: c.o.IdleTimeout, ctx: ctx, cancel: cancel,
		url: req.URL.Redacted(), slot: slot, q: q}
	b.timer = time.AfterFunc(b.idle, func() { b.silent.Store(true); cancel(errSilent) })
	b.timer.Stop()
	if resp.Body == http.NoBody {
		slot.release() // the answer to a HEAD has no end to wait for
	}
	return b
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.idle)
	n, err := b.rc.Read(p)
	b.timer.Stop()
	if err == nil {
		return n, nil
	}
	b.slot.release()
	if err != io.EOF {
		err = b.failed(err)
	}
	return n, err
}

var errSilent = errors.New("nothing came within the idle limit")

func (b *body) failed(err error) error {
	public := b.c.o.Name + " broke off in the middle of an answer"
	switch {
	case b.silent.Load():
		err = errSilent
		b.c.hosts.silent(b.host, b.q)
	case b.ctx.Err() != nil:
		err, public = context.Cause(b.ctx), "the request was given up"
	}
	return &registry.Error{Kind: registry.ErrUnavailable, Text: b.c.o.Name + ": read " + b.url, Public: public, Err: err}
}

// Close implements io.Closer. It may be called during a Read, which it ends.
func (b *body) Close() error {
	b.timer.Stop()
	err := b.rc.Close()
	b.cancel(nil)
	b.slot.release()
	return err
}
