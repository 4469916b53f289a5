package reply_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

// endless gives a megabyte and then fails.
type endless struct{ registry.Blob }

func (endless) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(make([]byte, 1<<20))
	if err == nil {
		err = registry.Errorf(registry.ErrDenied, "revoked")
	}
	return int64(n), err
}

// TestCutWithoutLength: in HTTP/1.0 a body of unknown length ends with the
// connection, so one that is cut must not end in the same way.
func TestCutWithoutLength(t *testing.T) {
	h := reply.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := registry.Descriptor{Size: -1}
		_ = reply.Serve(w, r, reply.Body{Descriptor: d, Blob: endless{lengthless{registry.NewBytesBlob(nil, d, 0, -1, registry.Via{})}}})
	}), reply.Options{Log: slog.New(slog.DiscardHandler)})
	for _, secure := range []bool{false, true} {
		s := httptest.NewUnstartedServer(h)
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		dial := net.Dial
		if secure {
			s.StartTLS()
			dial = func(network, addr string) (net.Conn, error) {
				return tls.Dial(network, addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
			}
		} else {
			s.Start()
		}
		conn, err := dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET / HTTP/1.0\r\n\r\n")
		n, err := io.Copy(io.Discard, conn)
		if err == nil {
			t.Errorf("secure %v: %d bytes looked like all", secure, n)
		}
		conn.Close()
		s.Close()
	}
}
