package trust

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// dialTime bounds a connection to another node, handshake included.
	dialTime = 5 * time.Second
	// askTime bounds one question to it.
	askTime = 10 * time.Second
	// maxAnswer bounds what is read of an answer about trust, in bytes.
	maxAnswer = 32 << 20
)

func hostPart(addr string) (string, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return "", registry.Errorf(registry.ErrInvalid, "%q is not an address with a port", addr)
	}
	return host, nil
}

// Dial connects to a node and makes sure who it is, for
// http.Transport.DialTLSContext. It takes at most 5 seconds and what ctx
// allows. What was joined or renewed a moment ago counts. Errors are
// ErrUnavailable and say which node and what is wrong with it, or with this one.
func (t *Trust) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := t.Client(addr)
	if err != nil {
		return nil, registry.Wrap(registry.ErrUnavailable, err, "connect to the node at "+addr)
	}
	conn, err := dialTLS(ctx, network, addr, c)
	if err != nil {
		return nil, registry.Wrap(registry.ErrUnavailable, err, "connect to the node at "+addr)
	}
	return conn, nil
}

func dialTLS(ctx context.Context, network, addr string, c *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, c)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// Transport is for requests to nodes, "https://host:port/…": HTTP/1.1 over
// [Trust.Dial], without proxies and without compression, since what is sent is
// compressed already. The caller may set its limits before it is used.
func (t *Trust) Transport() *http.Transport { return transport(t.Dial) }

func transport(dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		DialTLSContext: dial,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, registry.Errorf(registry.ErrInvalid, "nodes are reached by https only")
		},
		DisableCompression:  true,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
	}
}

// ask sends one request about trust and reads the answer. Redirects are not
// followed. A status other than 200 is an *answerError.
func ask(ctx context.Context, client *http.Client, method, url string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(string(body)))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		line, _, _ := strings.Cut(string(text), "\n")
		return nil, &answerError{status: resp.StatusCode, text: printable(line)}
	}
	if len(text) > maxAnswer {
		return nil, fmt.Errorf("its answer is longer than %d bytes", maxAnswer)
	}
	return text, nil
}

// printable is a line from another machine as it may be shown on a terminal.
func printable(line string) string {
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(line, ""))
	return line[:min(len(line), 500)]
}

// answerError is an answer that is a refusal.
type answerError struct {
	status int
	text   string
}

// Error implements error.
func (e *answerError) Error() string {
	if e.text == "" {
		return fmt.Sprintf("it answered %d", e.status)
	}
	return e.text
}

// client is for questions about trust over a transport.
func client(tr *http.Transport) *http.Client {
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}
