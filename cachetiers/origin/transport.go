package origin

import (
	"net"
	"net/http"
	"time"
)

const (
	dialLimit   = 5 * time.Second
	readHeaders = 10 * time.Second
	// writeHeaders is longer: what is sent is made into an object first.
	writeHeaders = 60 * time.Second
	// connections is how many are kept open between requests.
	connections = 64
)

// Shape sets what matters for buckets in a transport, and leaves its TLS as it
// is: HTTP/1.1, so that several streams are several connections, of which
// enough stay open; five seconds to connect; ten until the header of an answer,
// or 60 if it is for writes.
func Shape(t *http.Transport, writes bool) {
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.ForceAttemptHTTP2 = false
	t.DialContext = (&net.Dialer{Timeout: dialLimit, KeepAlive: 15 * time.Second}).DialContext
	t.TLSHandshakeTimeout = dialLimit
	t.ResponseHeaderTimeout = readHeaders
	if writes {
		t.ResponseHeaderTimeout = writeHeaders
	}
	t.ExpectContinueTimeout = time.Second
	t.MaxIdleConns, t.MaxIdleConnsPerHost, t.IdleConnTimeout = connections, connections, time.Minute
	t.DisableCompression = true // a blob is what it is
	t.ReadBufferSize, t.WriteBufferSize = 64<<10, 64<<10
}

// A Transport sends reads and writes to a bucket by a transport each, both of
// the right shape.
type Transport struct {
	read, write *http.Transport
}

var _ http.RoundTripper = (*Transport)(nil)

// NewTransport is a Transport with connections of its own.
func NewTransport() *Transport {
	t := &Transport{&http.Transport{Proxy: http.ProxyFromEnvironment}, &http.Transport{Proxy: http.ProxyFromEnvironment}}
	Shape(t.read, false)
	Shape(t.write, true)
	return t
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if ForWriting(r) {
		return t.write.RoundTrip(r)
	}
	return t.read.RoundTrip(r)
}

// ForWriting reports whether a request changes something, which takes longer.
func ForWriting(r *http.Request) bool {
	return r.Method != http.MethodGet && r.Method != http.MethodHead
}

// CloseIdleConnections closes the connections that nobody uses.
func (t *Transport) CloseIdleConnections() {
	t.read.CloseIdleConnections()
	t.write.CloseIdleConnections()
}
