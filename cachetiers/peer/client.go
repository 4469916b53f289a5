package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
)

const (
	// silence is how long a node may give no sign of life: while it is dialled,
	// and from the request to the answer.
	silence = time.Second
	// headerTimeout is how long an answer may take to begin, however lively.
	headerTimeout = 22 * time.Second
	// idleTimeout is how long a body may bring nothing.
	idleTimeout = 20 * time.Second
	// maxConns bounds the requests that are open at one node at once, and so
	// the connections.
	maxConns = 512
	// maxQuestion bounds what a question takes in a request's header, in bytes:
	// a server that refuses a header says nothing of the node.
	maxQuestion = 32 << 10
	// maxHeader bounds an answer's header.
	maxHeader = 256 << 10
)

var (
	// errSilent is a node that gave no sign of life.
	errSilent = errors.New("no sign of life")
	// errSlow is a node that lives and has no answer.
	errSlow = errors.New("no answer within the time limit")
	// errDead marks failures of the node itself, or of the way to it: another
	// may be asked.
	errDead = errors.New("no answer to use")
	// errRefused is a node that answers, and will have nothing to do with this
	// one: until someone has done something about it.
	errRefused = fmt.Errorf("refused: %w", errDead)
)

// client asks one node.
type client struct {
	address string // https://host:port
	host    string // host:port, for people
	rt      *http.Transport
	slots   *semaphore.Weighted
	meter   registry.Meter
}

func newClient(address string, dial Dial, meter registry.Meter) (*client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, registry.Errorf(registry.ErrInvalid, "%q is not the address of a node", address)
	}
	return &client{address: "https://" + u.Host, host: u.Host, meter: meter, slots: semaphore.NewWeighted(maxConns), rt: &http.Transport{
		DialTLSContext:         dial,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxConns,
		IdleConnTimeout:        5 * time.Minute,
		MaxResponseHeaderBytes: maxHeader,
		ReadBufferSize:         64 << 10,
	}}, nil
}

// enter waits for a slot, for as long as an answer may take to begin. It is not
// the transport that bounds connections: who waits there cannot be told from who
// waits for a node that is dead. Pings need no slot.
func (c *client) enter(ctx context.Context, path string) (leave func(), err error) {
	if path == pingPath || c.slots.TryAcquire(1) {
		return func() {
			if path != pingPath {
				c.slots.Release(1)
			}
		}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	if err := c.slots.Acquire(ctx, 1); err != nil {
		return nil, &registry.Error{Kind: registry.ErrUnavailable, Text: "ask " + c.host + ": all connections are in use",
			Public: "a node behind is asked for too much at once", After: retryAfter, Err: err}
	}
	return func() { c.slots.Release(1) }, nil
}

// watch ends a request whose node gives no sign of life for limit.
type watch struct {
	limit time.Duration

	mu    sync.Mutex
	timer *time.Timer // guarded by mu
	over  bool        // guarded by mu
}

func newWatch(limit time.Duration, silent func()) *watch {
	return &watch{limit: limit, timer: time.AfterFunc(limit, silent)}
}

// sign may come after the answer: a dial that another connection has overtaken
// goes on, and who wrote the request may be late to tell. It must not count then.
func (w *watch) sign() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.timer.Reset(w.limit)
	}
}

func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.timer.Stop()
}

// trace has every step of a request count as a sign.
func (w *watch) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		ConnectDone:  func(_, _ string, err error) { w.sign() },
		GotConn:      func(httptrace.GotConnInfo) { w.sign() },
		WroteRequest: func(httptrace.WroteRequestInfo) { w.sign() },
		Got1xxResponse: func(int, textproto.MIMEHeader) error {
			w.sign()
			return nil
		},
	}
}

// do sends one request. The failure of a node that cannot be reached is
// errDead, of kind ErrUnavailable. signs, if not nil, is called whenever the
// node says that it is at work.
func (c *client) do(ctx context.Context, method, path, ranged string, limit time.Duration, signs func()) (*http.Response, error) {
	if len(path) > maxQuestion {
		return nil, &registry.Error{Kind: registry.ErrUnavailable, Text: fmt.Sprintf("ask %s: a question of %d bytes", c.host, len(path)),
			Public: "what is known of this is too long to ask a node behind"}
	}
	leave, err := c.enter(ctx, path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	w := newWatch(limit, func() { cancel(errSilent) })
	slow := time.AfterFunc(headerTimeout, func() { cancel(errSlow) })
	trace := w.trace()
	if signs != nil {
		on := trace.Got1xxResponse
		trace.Got1xxResponse = func(code int, h textproto.MIMEHeader) error { signs(); return on(code, h) }
	}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), method, c.address+path, nil)
	if err != nil {
		slow.Stop()
		w.stop()
		cancel(nil)
		leave()
		return nil, registry.Wrap(registry.ErrInvalid, err, "ask "+c.host)
	}
	if ranged != "" {
		req.Header.Set("Range", ranged)
	}
	begun := time.Now()
	resp, err := c.rt.RoundTrip(req)
	slow.Stop()
	w.stop()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		leave()
		c.meter.Upstream(c.host, 0, time.Since(begun))
		return nil, c.dead(ctx, err)
	}
	c.meter.Upstream(c.host, resp.StatusCode, time.Since(begun))
	resp.Body = &body{rc: resp.Body, host: c.host, ctx: ctx, cancel: cancel, leave: sync.OnceFunc(leave)}
	if err := c.check(resp); err != nil {
		return nil, err
	}
	return resp, nil
}

// dead is the failure of a node that gave no answer.
func (c *client) dead(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &registry.Error{Kind: registry.ErrUnavailable, Text: "ask " + c.host, Public: "the request was given up", Err: err}
	}
	if !errors.Is(err, errSlow) { // which is about the question, not the node
		err = fmt.Errorf("%w: %w", errDead, err)
	}
	return &registry.Error{Kind: registry.ErrUnavailable, Text: "ask " + c.host, Public: "a node behind does not answer", After: retryAfter, Err: err}
}

// retryAfter is what clients are told when no node answers.
const retryAfter = 5 * time.Second

// check turns an answer that is a failure into one.
func (c *client) check(resp *http.Response) error {
	word := resp.Header.Get(kindHeader)
	if word == "" && resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxText)) // what there is of it
	resp.Body.Close()
	kind := outbound.KindOf(word)
	if kind == nil {
		// Not a node's own words: something in between, or a node that does
		// not know this one.
		return &registry.Error{Kind: registry.ErrUnavailable, Public: "a node behind refuses",
			Text: fmt.Sprintf("%s answered %d %q", c.host, resp.StatusCode, strings.TrimSpace(string(text))), After: retryAfter,
			Err: errRefused}
	}
	after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return &registry.Error{Kind: kind, Text: fmt.Sprintf("%s: %s", c.host, text), Public: string(text),
		After: time.Duration(min(max(after, 0), 86400)) * time.Second}
}

// body gives a response's failures a kind, and ends it when nothing comes.
type body struct {
	rc     io.ReadCloser
	host   string
	ctx    context.Context
	cancel context.CancelCauseFunc
	leave  func() // gives the slot back
	timer  *time.Timer
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.timer == nil {
		b.timer = time.AfterFunc(idleTimeout, func() { b.cancel(errSilent) })
	} else {
		b.timer.Reset(idleTimeout)
	}
	n, err := b.rc.Read(p)
	b.timer.Stop()
	if err == nil || err == io.EOF {
		return n, err
	}
	if cause := context.Cause(b.ctx); cause != nil {
		err = cause
	}
	return n, &registry.Error{Kind: registry.ErrUnavailable, Text: "read from " + b.host, Public: "a node behind broke off", Err: err}
}

// Close implements io.Closer.
func (b *body) Close() error {
	if b.timer != nil {
		b.timer.Stop()
	}
	err := b.rc.Close()
	b.cancel(nil)
	b.leave()
	return err
}

// open asks for a run of a blob.
func (c *client) open(ctx context.Context, w registry.Want, limit time.Duration, signs func()) (registry.Blob, error) {
	method := http.MethodGet
	if w.Length == 0 {
		method = http.MethodHead
	}
	resp, err := c.do(ctx, method, wantURL(w), outbound.RangeOf(w), limit, signs)
	if err != nil {
		return nil, err
	}
	b := &run{body: resp.Body, d: w.Descriptor, via: parseVia(resp.Header.Get(viaHeader))}
	if b.d.Size, b.offset, b.length, err = parseRun(resp.Header.Get(runHeader), w); err != nil {
		resp.Body.Close()
		return nil, &registry.Error{Kind: registry.ErrUnavailable, Text: c.host + " answered", Public: "a node behind answers nonsense",
			Err: fmt.Errorf("%w: %w", errDead, err)}
	}
	b.left = b.length
	return b, nil
}

// run is a blob from a node.
type run struct {
	body           io.ReadCloser
	d              registry.Descriptor
	via            registry.Via
	offset, length int64
	left           int64 // of length
}

var _ registry.Blob = (*run)(nil)

// Descriptor implements registry.Blob.
func (b *run) Descriptor() registry.Descriptor { return b.d }

// Span implements registry.Blob.
func (b *run) Span() (int64, int64) { return b.offset, b.length }

// Via implements registry.Blob.
func (b *run) Via() registry.Via { return b.via }

// Close implements registry.Blob.
func (b *run) Close() error { return b.body.Close() }

// Read implements io.Reader.
func (b *run) Read(p []byte) (int, error) {
	if b.length < 0 {
		return b.body.Read(p) // its end is the chunked coding's
	}
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.body.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == io.EOF && b.left > 0 {
		err = registry.Errorf(registry.ErrUnavailable, "a node behind broke off")
	}
	return n, err
}

// WriteTo implements io.WriterTo.
func (b *run) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{b}) }

// resolve asks what a name stands for.
func (c *client) resolve(ctx context.Context, q registry.Question, limit time.Duration, signs func()) (registry.Binding, io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, questionURL(q, time.Now()), "", limit, signs)
	if err != nil {
		return registry.Binding{}, nil, err
	}
	b, same, err := parseBinding(resp.Header.Get(bindingHeader), time.Now())
	if err != nil {
		resp.Body.Close()
		return registry.Binding{}, nil, &registry.Error{Kind: registry.ErrUnavailable, Text: c.host + " answered", Public: "a node behind answers nonsense",
			Err: fmt.Errorf("%w: %w", errDead, err)}
	}
	if same || resp.ContentLength == 0 {
		resp.Body.Close()
		return b, nil, nil
	}
	return b, resp.Body, nil
}

// ping reports whether the node answers at once.
func (c *client) ping(ctx context.Context) error {
	resp, err := c.do(ctx, http.MethodGet, pingPath, "", silence, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
