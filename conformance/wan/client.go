package wan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// clientConnections is how many idle connections a client keeps to one server.
const clientConnections = 512

// A Fault is how a request failed.
type Fault string

// The kinds of failure. OK is none.
const (
	OK      Fault = ""
	Refused Fault = "refused" // no connection
	Reset   Fault = "reset"   // no answer, or the connection broke before the header
	Timeout Fault = "timeout" // nothing more within the limit
	Status  Fault = "status"  // an answer, but not 200
	Cut     Fault = "cut"     // the body broke off
	Wrong   Fault = "wrong"   // a whole body that is not what was asked for
)

// A Client makes requests and measures them. It keeps connections open and is
// for any number of goroutines; what it reads it keeps no copy of.
type Client struct {
	http    *http.Client
	buffers sync.Pool
}

// NewClient makes a client whose requests take at most limit; 0: 2 minutes.
func NewClient(t testing.TB, limit time.Duration) *Client {
	if limit <= 0 {
		limit = 2 * time.Minute
	}
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: clientConnections, ReadBufferSize: 16 << 10,
		DialContext: (&net.Dialer{Timeout: 10 * time.Second, Control: reno}).DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	return &Client{http: &http.Client{Transport: tr, Timeout: limit},
		buffers: sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}}
}

// A Want is what a request should bring.
type Want struct {
	// URL is where it is; see [BlobPath] and [ManifestPath].
	URL string
	// Blob is what must come. The zero value checks nothing.
	Blob Blob
	// Token is presented as a bearer token; "": none is.
	Token string
	// Quick compares a CRC-32C and not the digest: for so many gigabytes that
	// hashing them would be what is measured.
	Quick bool
}

// An Answer is what a request brought.
type Answer struct {
	Fault Fault
	// Err says more about the fault.
	Err error
	// Code is the HTTP status, 0 if there was none.
	Code int
	// Header is the time from the request to the answer's first byte, First
	// that to the body's first byte, Total that to its last.
	Header, First, Total time.Duration
	Bytes                int64
	// Cache is the answer's Cache-Status.
	Cache string
	// Reused says that the connection had been open before.
	Reused bool
}

// BlobPath is where a blob of a repository is.
func BlobPath(repo string, b Blob) string { return "/v2/" + repo + "/blobs/" + b.Digest.String() }

// ManifestPath is where a manifest is; ref is a tag or a digest.
func ManifestPath(repo, ref string) string { return "/v2/" + repo + "/manifests/" + ref }

// Get makes one request and reads its answer to the end, or until ctx ends.
func (c *Client) Get(ctx context.Context, w Want) Answer {
	var a Answer
	start := time.Now()
	trace := &httptrace.ClientTrace{
		GotConn:              func(i httptrace.GotConnInfo) { a.Reused = i.Reused },
		GotFirstResponseByte: func() { a.Header = time.Since(start) },
	}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodGet, w.URL, nil)
	if err != nil {
		return Answer{Fault: Reset, Err: err}
	}
	if w.Token != "" {
		req.Header.Set("Authorization", "Bearer "+w.Token)
	}
	if strings.Contains(w.URL, "/manifests/") {
		req.Header.Set("Accept", v1.MediaTypeImageManifest+", "+v1.MediaTypeImageIndex)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		a.Total = time.Since(start)
		a.Fault, a.Err = unanswered(err), err
		return a
	}
	defer resp.Body.Close()
	a.Code, a.Cache = resp.StatusCode, resp.Header.Get("Cache-Status")
	got := newSum(!w.Quick && w.Blob.Size > 0)
	err = c.read(resp.Body, got, func() { a.First = time.Since(start) })
	a.Total, a.Bytes = time.Since(start), got.size
	switch {
	case a.Code != http.StatusOK:
		a.Fault, a.Err = Status, fmt.Errorf("%s (Retry-After %q)", resp.Status, resp.Header.Get("Retry-After"))
	case err != nil:
		a.Fault, a.Err = Cut, err
		if isTimeout(err) {
			a.Fault = Timeout
		}
	case w.Blob.Size > 0 && !got.is(w.Blob):
		a.Fault, a.Err = Wrong, fmt.Errorf("%d bytes that are not %s", got.size, w.Blob.Digest)
	}
	return a
}

// read sums up a body. first is called when it has begun.
func (c *Client) read(body io.Reader, into *sum, first func()) error {
	buf := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buf)
	for {
		n, err := body.Read(*buf)
		if n > 0 && into.size == 0 {
			first()
		}
		into.Write((*buf)[:n])
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// unanswered is the kind of a request that got no answer.
func unanswered(err error) Fault {
	var op *net.OpError
	switch {
	case isTimeout(err):
		return Timeout
	case errors.Is(err, syscall.ECONNREFUSED), errors.As(err, &op) && op.Op == "dial":
		return Refused
	}
	return Reset
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// Must is Get for what a scenario needs before it begins: a fault fails the
// test at once.
func (c *Client) Must(t testing.TB, w Want) Answer {
	t.Helper()
	a := c.Get(context.Background(), w)
	if a.Fault != OK {
		t.Fatalf("GET %s: %s: %v", w.URL, a.Fault, a.Err)
	}
	return a
}
