package outbound

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

// longestAfter bounds what a Retry-After may say, so that no arithmetic on it
// overflows.
const longestAfter = 24 * time.Hour

// How much of an unwanted body is read for the connection's sake, and how long.
const (
	discardBytes = 64 << 10
	discardTime  = 2 * time.Second
)

// Check turns a status into a kind: nil for 2xx, else
//
//	404, 410  ErrNotFound
//	401       ErrUnauthenticated
//	403       ErrDenied
//	429       ErrLimited, with After from Retry-After
//	416       ErrInvalid
//	the rest  ErrUnavailable, with After from Retry-After if it is there
//
// 3xx are among the rest: a redirect that could not be followed is no answer.
// If it returns an error it has drained and closed the body, the beginning of
// which is in the error's text for the log. doing is for the log too.
func (c *Client) Check(resp *http.Response, doing string) error {
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		return nil
	}
	said := discard(resp)
	e := &registry.Error{
		Text:  fmt.Sprintf("%s: %s answered %d %q", doing, c.o.Name, resp.StatusCode, said),
		After: retryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		e.Kind, e.Public, e.After = registry.ErrNotFound, c.o.Name+" has no such thing", 0
	case http.StatusUnauthorized:
		e.Kind, e.Public, e.After = registry.ErrUnauthenticated, c.o.Name+" requires authentication for this", 0
	case http.StatusForbidden:
		e.Kind, e.Public, e.After = registry.ErrDenied, c.o.Name+" denies access to this", 0
	case http.StatusTooManyRequests:
		e.Kind, e.Public = registry.ErrLimited, c.o.Name+" limits how often it may be asked"
	case http.StatusRequestedRangeNotSatisfiable:
		e.Kind, e.Public, e.After = registry.ErrInvalid, "the range is past the end", 0
	default:
		e.Kind = registry.ErrUnavailable
		e.Public = strings.TrimSpace(fmt.Sprintf("%s answers %d %s", c.o.Name, resp.StatusCode, http.StatusText(resp.StatusCode)))
	}
	return e
}

// Discard gives up what is left of a response: it reads a little of it, so that
// the connection can be used again, but not for long, and closes it.
func Discard(resp *http.Response) { discard(resp) }

// discard gives the beginning of what it discards.
func discard(resp *http.Response) []byte {
	defer time.AfterFunc(discardTime, func() { resp.Body.Close() }).Stop()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 512))
	if err == nil && resp.ContentLength < discardBytes {
		_, _ = io.CopyN(io.Discard, resp.Body, discardBytes)
	}
	resp.Body.Close()
	return said
}

// retryAfter reads seconds or an HTTP date (RFC 9110 section 10.2.3); zero if
// it is neither or is past.
func retryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if secs, err := strconv.ParseUint(s, 10, 32); err == nil {
		return min(time.Duration(secs)*time.Second, longestAfter)
	}
	if at, err := http.ParseTime(s); err == nil {
		return min(max(at.Sub(now), 0), longestAfter)
	}
	return 0
}
