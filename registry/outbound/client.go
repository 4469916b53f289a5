package outbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	defaultHeaderTimeout = 15 * time.Second
	defaultIdleTimeout   = 15 * time.Second
	defaultMaxConns      = 64
	longestQueue         = 10 * time.Second // until a slot is free
	dialTimeout          = 10 * time.Second
	maxRedirects         = 10
	maxHeaderBytes       = 256 << 10
)

// Options say what a Client talks to and how patient it is. Name and Base must
// be set; the zero value of the rest is right.
type Options struct {
	// Name is how metrics and errors call the upstream: "docker.io", "public".
	Name string
	// Base is the configured address: http or https, a path prefix allowed.
	Base *url.URL
	// Redirects are hosts that may be dialled although they resolve to
	// addresses that are not public: "files.internal" (its ports 80 and 443),
	// "127.0.0.2:8080", "127.0.0.2:*" (any port), "*.internal" (hosts below
	// it). Base's own host and port need no entry.
	Redirects []string
	// UserAgent is sent unless a request has one.
	UserAgent string
	// HeaderTimeout is how long Do may take, redirects included; 0: 15 s.
	HeaderTimeout time.Duration
	// IdleTimeout is how long a read of a body may wait for a byte; 0: 15 s.
	IdleTimeout time.Duration
	// MaxConns bounds the requests that are open at once, from when they are
	// sent to the end of their answers' bodies, and the connections per host;
	// 0: 64. Four times as many may wait.
	MaxConns int
	// Meter is told what happens; if it is a registry.Watcher too, it is given
	// the means to ask how many requests are open. nil: nothing is counted.
	Meter registry.Meter
	Log   *slog.Logger // nil: slog.Default()
	// Transport replaces the network in tests; the rules about addresses are
	// then not applied, those about redirects are.
	Transport http.RoundTripper
}

// A Client asks one upstream. Its methods may be called at once.
type Client struct {
	o       Options
	rt      http.RoundTripper
	dials   dialer
	patient time.Duration // how long a request may wait for a slot
	slots   *slots
	hosts   hosts
	retries budget
}

// New makes a Client, or says what is wrong with o.
func New(o Options) (*Client, error) {
	if o.Base == nil || o.Base.Host == "" || o.Base.Scheme != "http" && o.Base.Scheme != "https" {
		return nil, registry.Errorf(registry.ErrInvalid, "upstream %q: the address must be http:// or https:// and a host", o.Name)
	}
	if o.Base.User != nil || o.Base.RawQuery != "" || o.Base.Fragment != "" {
		return nil, registry.Errorf(registry.ErrInvalid, "upstream %q: the address must not have a user, a query or a fragment", o.Name)
	}
	allowed, err := ParseHosts(o.Redirects)
	if err != nil {
		return nil, registry.Wrap(registry.ErrInvalid, err, "upstream "+o.Name)
	}
	base := *o.Base
	o.Base = &base
	o.HeaderTimeout = orElse(o.HeaderTimeout, defaultHeaderTimeout)
	o.IdleTimeout = orElse(o.IdleTimeout, defaultIdleTimeout)
	o.MaxConns = orElse(o.MaxConns, defaultMaxConns)
	if o.Meter == nil {
		o.Meter = registry.NoMeter{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	c := &Client{o: o, rt: o.Transport, dials: dialer{base: HostPort(&base), allowed: allowed}}
	if c.rt == nil {
		c.rt = c.transport()
	}
	// Waiting leaves at least half of the time for the exchange itself.
	c.patient = min(o.HeaderTimeout/2, longestQueue)
	c.slots = newSlots(o.Name, o.MaxConns, max(c.patient/time.Duration(classes), 1))
	c.hosts = hosts{name: o.Name, slow: o.HeaderTimeout / 4, meter: o.Meter, log: o.Log}
	if watch, ok := o.Meter.(registry.Watcher); ok {
		watch.WatchUpstream(o.Name, c.slots.counts)
	}
	return c, nil
}

func orElse[T int | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// transport is net/http's with weir's dialer, without its proxies and without
// its own idea of compression, which would hide the Content-Length.
func (c *Client) transport() *http.Transport {
	return &http.Transport{
		DialContext:            c.dials.dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    dialTimeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxConnsPerHost:        c.o.MaxConns,
		MaxIdleConnsPerHost:    c.o.MaxConns,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
		ReadBufferSize:         64 << 10,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
}

// Base is a copy of the configured address.
func (c *Client) Base() *url.URL {
	u := *c.o.Base
	return &u
}

// Name is how the upstream is called in errors and metrics.
func (c *Client) Name() string { return c.o.Name }

// Do sends req, whose URL is absolute, and follows the redirects of a GET or
// HEAD by the rules in the package's comment; https never becomes http. It
// tries a GET or HEAD once more if the connection broke before an answer and
// the budget for retries allows it. ctx governs the body too, which the caller
// closes: the request counts as open until the body has been read to its end,
// has failed, or is closed.
//
// When too many are open, load says how soon this one is sent, or that it is
// refused. All of that, waiting included, takes at most the header timeout.
//
// Errors are of kind ErrUnavailable, or ErrLimited while the upstream has asked
// not to be asked; with a time to try again where weir itself refuses, and with
// a text for clients that names the upstream and no address. Reading the body
// fails with ErrUnavailable if it ends early or nothing comes for the idle
// timeout. Every status is a success here; see [Client.Check].
func (c *Client) Do(ctx context.Context, req *http.Request, load Load) (*http.Response, error) {
	// The context outlives Do: the body is read under it.
	bodyCtx, cancel := context.WithCancelCause(ctx)
	slow := time.AfterFunc(c.o.HeaderTimeout, func() { cancel(errSlow) })
	q := question{load, req.URL.RequestURI()}
	q.about = q.about[:min(len(q.about), aboutBytes)]
	resp, slot, err := c.ask(bodyCtx, c.prepare(bodyCtx, req), q)
	if !slow.Stop() && err == nil {
		resp.Body.Close()
		slot.release()
		err = errSlow
	}
	if err != nil {
		if cause := context.Cause(bodyCtx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, c.unanswered(req, err)
	}
	resp.Body = newBody(bodyCtx, cancel, c, req, resp, q, slot)
	return resp, nil
}

// ask waits for a slot and sends req. What is refused anyway does not wait.
func (c *Client) ask(ctx context.Context, req *http.Request, q question) (*http.Response, *slot, error) {
	if err := c.hosts.refused(HostPort(req.URL), q); err != nil {
		return nil, nil, err
	}
	slot, err := c.slots.take(ctx, q.Load, c.patient)
	if err != nil {
		return nil, nil, err
	}
	resp, err := c.follow(ctx, req, q)
	if err != nil {
		slot.release()
		return nil, nil, err
	}
	return resp, slot, nil
}

var errSlow = errors.New("no answer within the time limit")

// prepare makes the request that is really sent: never the caller's own, whose
// header must not change under it.
func (c *Client) prepare(ctx context.Context, req *http.Request) *http.Request {
	out := req.Clone(ctx)
	if out.Header == nil {
		out.Header = http.Header{}
	}
	if out.Header.Get("User-Agent") == "" && c.o.UserAgent != "" {
		out.Header.Set("User-Agent", c.o.UserAgent)
	}
	return out
}

// follow sends req and whatever it is redirected to.
func (c *Client) follow(ctx context.Context, req *http.Request, q question) (*http.Response, error) {
	if c.o.Base.Scheme == "https" && req.URL.Scheme != "https" {
		return nil, refused("a request to %s would leave https", req.URL.Host)
	}
	for hop := 0; ; hop++ {
		resp, err := c.send(req, q)
		if err != nil {
			return nil, err
		}
		next, err := redirected(req, resp)
		if next == nil && err == nil {
			return resp, nil
		}
		// Drained, so that the connection can be used again.
		io.CopyN(io.Discard, resp.Body, 16<<10)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		if hop == maxRedirects {
			return nil, refused("more than %d redirects", maxRedirects)
		}
		c.o.Log.DebugContext(ctx, "upstream redirects", "upstream", c.o.Name, "to", next.URL.Host)
		req = next
	}
}

// redirected is the request that resp asks for instead of req; nil if it is an
// answer.
func redirected(req *http.Request, resp *http.Response) (*http.Request, error) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return nil, nil
	}
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	location := resp.Header.Get("Location")
	if location == "" {
		return nil, nil
	}
	to, err := req.URL.Parse(location)
	if err != nil {
		return nil, refused("a redirect to an address that makes no sense")
	}
	switch {
	case to.Host == "" || to.Scheme != "http" && to.Scheme != "https":
		return nil, refused("a redirect to a %q address", to.Scheme)
	case req.URL.Scheme == "https" && to.Scheme == "http":
		return nil, refused("a redirect from https to http at %s", to.Host)
	}
	// A user in the address would be credentials of someone else's choosing.
	to.User, to.Fragment, to.RawFragment = nil, "", ""
	next := req.Clone(req.Context())
	next.URL, next.Host = to, ""
	if to.Scheme != req.URL.Scheme || HostPort(to) != HostPort(req.URL) {
		for _, secret := range []string{"Authorization", "Cookie", "Cookie2", "Proxy-Authorization", "Www-Authenticate"} {
			next.Header.Del(secret)
		}
	}
	return next, nil
}

// send is one exchange, tried again once if the connection broke before an
// answer began: a server may close an idle connection just as it is reused.
func (c *Client) send(req *http.Request, q question) (*http.Response, error) {
	permit, err := c.hosts.admit(HostPort(req.URL), q)
	if err != nil {
		return nil, err
	}
	c.retries.earn()
	for try := 0; ; try++ {
		begun := time.Now()
		resp, err := c.rt.RoundTrip(req)
		if err == nil {
			c.o.Meter.Upstream(c.o.Name, resp.StatusCode, time.Since(begun))
			permit.settle(q, resp, nil)
			return resp, nil
		}
		c.o.Meter.Upstream(c.o.Name, 0, time.Since(begun))
		if try > 0 || !broke(req, err) || !c.retries.spend() {
			permit.settle(q, nil, err)
			return nil, err
		}
	}
}

// broke reports whether err is a connection that was there and went away.
func broke(req *http.Request, err error) bool {
	if req.Context().Err() != nil || req.Method != http.MethodGet && req.Method != http.MethodHead {
		return false
	}
	var op *net.OpError
	var cert *tls.CertificateVerificationError
	var rule *refusal
	if errors.As(err, &op) && op.Op == "dial" || errors.As(err, &cert) || errors.As(err, &rule) {
		return false
	}
	var timeout net.Error
	return !errors.As(err, &timeout) || !timeout.Timeout()
}

// A refusal is a failure whose cause is a rule of weir's, not the network.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

func refused(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

// unanswered is what the caller of Do gets for err.
func (c *Client) unanswered(req *http.Request, err error) error {
	if registry.KindOf(err) != nil { // weir's own refusal, or the caller's cause
		return registry.Wrap(registry.ErrUnavailable, err, req.Method+" "+req.URL.Redacted())
	}
	public := c.o.Name + " does not answer"
	var r *refusal
	switch {
	case errors.As(err, &r):
		public = c.o.Name + " answers with a redirect that is not followed"
	case errors.Is(err, context.Canceled):
		public = "the request was given up"
	}
	return &registry.Error{Kind: registry.ErrUnavailable, Text: c.o.Name + ": " + req.Method + " " + req.URL.Redacted(), Public: public, Err: err}
}

// HostPort is u's host and port, the scheme's own if none is written.
func HostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == "https" {
			port = "443"
		}
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}
