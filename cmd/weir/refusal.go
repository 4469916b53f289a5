package main

import (
	"bytes"
	"encoding/json"
	"strings"
)

// cannedHeader is what net/http writes between the status line and the text of
// an answer that it gives by itself, to a request that it cannot parse or that
// has too large a header: no handler ever sees those. Answers of handlers have
// a Date too and never look like this.
const cannedHeader = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"

// cannedLimit is longer than any such answer; most others are longer still.
const cannedLimit = 256

// Write implements net.Conn. net/http's own refusals are put into a form that
// the clients of both protocols read.
func (c *limitedConn) Write(p []byte) (int, error) {
	instead := refusal(p)
	if instead == nil {
		return c.TCPConn.Write(p)
	}
	if _, err := c.TCPConn.Write(instead); err != nil {
		return 0, err
	}
	return len(p), nil
}

// refusal is the answer to give instead of p, or nil if p is none of net/http's
// own. Which protocol is meant cannot be told from a request that could not be
// parsed, so the body is an error of both: "errors" is what OCI clients read,
// "error" what npm's do.
func refusal(p []byte) []byte {
	if len(p) > cannedLimit {
		return nil
	}
	head, text, ok := bytes.Cut(p, []byte(cannedHeader))
	status, isHTTP := bytes.CutPrefix(head, []byte("HTTP/1.1 "))
	if !ok || !isHTTP || bytes.IndexByte(status, '\n') >= 0 {
		return nil
	}
	code, message, _ := strings.Cut(string(text), " ")
	if !strings.HasPrefix(string(status), code) { // 501 has no code in its text
		message = string(text)
	}
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, err := json.Marshal(struct {
		Errors []entry `json:"errors"`
		Error  string  `json:"error"`
	}{[]entry{{"UNSUPPORTED", message}}, message})
	if err != nil {
		return nil
	}
	answer := append(bytes.Clone(head), "\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"...)
	return append(answer, body...)
}
