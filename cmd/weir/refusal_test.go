package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
)

// startRefusing serves one file on a listener of weir's own.
func startRefusing(t *testing.T, file string) string {
	t.Helper()
	l, err := listen("listen", "127.0.0.1:0", 10)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{MaxHeaderBytes: 8 << 10, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, file)
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

// TestRefusalsOfNetHTTP sends what net/http refuses before any handler sees it:
// were a later version to word that in another way, this would tell.
func TestRefusalsOfNetHTTP(t *testing.T) {
	t.Parallel()
	addr := startRefusing(t, os.DevNull)
	for what, c := range map[string]struct {
		text string
		code int
	}{
		"a wrong encoding":   {"GET /%zz HTTP/1.1\r\nHost: weir\r\n\r\n", 400},
		"no host":            {"GET / HTTP/1.1\r\n\r\n", 400},
		"not HTTP":           {"\x16\x03\x01\r\n\r\n", 400},
		"a version to come":  {"GET / HTTP/3.7\r\nHost: weir\r\n\r\n", 505},
		"a large header":     {"GET / HTTP/1.1\r\nHost: weir\r\nX-Large: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", 431},
		"an unknown framing": {"GET / HTTP/1.1\r\nHost: weir\r\nTransfer-Encoding: morse\r\n\r\n", 501},
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go io.WriteString(conn, c.text)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		body, _ := io.ReadAll(resp.Body)
		var e struct {
			Errors []struct{ Code, Message string }
			Error  string
		}
		err = json.Unmarshal(body, &e)
		if err != nil || resp.StatusCode != c.code || len(e.Errors) != 1 || e.Errors[0].Code == "" || e.Errors[0].Message == "" ||
			e.Error != e.Errors[0].Message || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s %v %q", what, resp.Status, resp.Header, body)
		}
	}
}

// TestRefusalLeavesAnswersAlone writes what only looks like a refusal.
func TestRefusalLeavesAnswersAlone(t *testing.T) {
	t.Parallel()
	canned := "HTTP/1.1 400 Bad Request" + cannedHeader + "400 Bad Request"
	for _, p := range []string{
		"", "HTTP/1.1 200 OK\r\n\r\n", canned[1:], "HTTP/1.1 400 Bad Request\r\nDate: today" + cannedHeader + "400 Bad Request",
		canned + strings.Repeat(" ", 300), "layer bytes " + canned,
	} {
		if got := refusal([]byte(p)); got != nil {
			t.Errorf("%q became %q", p, got)
		}
	}
	if got := refusal([]byte(canned)); !bytes.HasPrefix(got, []byte("HTTP/1.1 400 Bad Request\r\n")) || !bytes.Contains(got, []byte(`"error":"Bad Request"`)) {
		t.Errorf("got %q", got)
	}
}
