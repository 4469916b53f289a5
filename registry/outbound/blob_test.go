package outbound

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

func TestCheck(t *testing.T) {
	c := client(t, "http://up.test", Options{})
	for _, s := range []struct {
		code  int
		kind  error
		after string
		want  time.Duration
	}{
		{200, nil, "", 0}, {204, nil, "", 0}, {206, nil, "", 0},
		{404, registry.ErrNotFound, "", 0}, {410, registry.ErrNotFound, "", 0},
		{401, registry.ErrUnauthenticated, "", 0}, {403, registry.ErrDenied, "", 0},
		{429, registry.ErrLimited, "17", 17 * time.Second}, {429, registry.ErrLimited, "", 0},
		{429, registry.ErrLimited, "99999999999999999999", 0}, {429, registry.ErrLimited, "4294967295", longestAfter},
		{416, registry.ErrInvalid, "", 0}, {503, registry.ErrUnavailable, "5", 5 * time.Second},
		{500, registry.ErrUnavailable, "", 0}, {302, registry.ErrUnavailable, "", 0}, {304, registry.ErrUnavailable, "", 0},
		{400, registry.ErrUnavailable, "", 0}, {418, registry.ErrUnavailable, "", 0}, {799, registry.ErrUnavailable, "", 0},
	} {
		body := &closed{Reader: strings.NewReader("why\x00not")}
		resp := &http.Response{StatusCode: s.code, Header: http.Header{"Retry-After": {s.after}}, Body: body}
		err := c.Check(resp, "testing")
		if registry.KindOf(err) != s.kind || registry.RetryAfter(err) != s.want || body.closed != (err != nil) {
			t.Errorf("%d %q: %v, after %v, closed %v", s.code, s.after, err, registry.RetryAfter(err), body.closed)
		}
		if err != nil && (!strings.Contains(err.Error(), `why\x00not`) || strings.Contains(registry.Public(err), "why")) {
			t.Errorf("%d: %v, public %q", s.code, err, registry.Public(err))
		}
	}
}

type closed struct {
	io.Reader
	closed bool
}

func (c *closed) Close() error { c.closed = true; return nil }

func TestRetryAfterDate(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0,
		now.AddDate(80, 0, 0).Format(http.TimeFormat): longestAfter, " 3 ": 3 * time.Second, "-3": 0, "soon": 0, "": 0, "1.5": 0,
	} {
		if got := retryAfter(s, now); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

const content = "0123456789"

func response(code int, body string, header ...string) *http.Response {
	resp := &http.Response{StatusCode: code, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: -1}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Content-Length" {
			resp.ContentLength, _ = strconv.ParseInt(header[i+1], 10, 64)
		}
		resp.Header.Set(header[i], header[i+1])
	}
	return resp
}

func want(size, offset, length int64) registry.Want {
	return registry.Want{Descriptor: registry.Descriptor{Size: size}, Offset: offset, Length: length}
}

func TestNewBlob(t *testing.T) {
	for name, c := range map[string]struct {
		resp         *http.Response
		w            registry.Want
		data         string
		offset, size int64
		length       int64
		opens, reads error
	}{
		"whole":          {resp: response(200, content, "Content-Length", "10"), w: want(-1, 0, -1), data: content, size: 10, length: 10},
		"whole unknown":  {resp: response(200, content), w: want(-1, 0, -1), data: content, size: -1, length: -1},
		"size from want": {resp: response(200, content), w: want(10, 0, -1), data: content, size: 10, length: 10},
		"short of want":  {resp: response(200, content), w: want(11, 0, -1), data: content, size: 11, length: 11, reads: registry.ErrUnavailable},
		"range":          {resp: response(206, "345", "Content-Range", "bytes 3-5/10"), w: want(10, 3, 3), data: "345", offset: 3, size: 10, length: 3},
		"range no total": {resp: response(206, "345", "Content-Range", "bytes 3-5/*"), w: want(-1, 3, 3), data: "345", offset: 3, size: -1, length: -1},
		"range clipped":  {resp: response(206, "89", "Content-Range", "bytes 8-9/10"), w: want(10, 8, 30), data: "89", offset: 8, size: 10, length: 2},
		"range too long": {resp: response(206, "3456789", "Content-Range", "bytes 3-9/10"), w: want(10, 3, 2), data: "34", offset: 3, size: 10, length: 2},
		"range ignored":  {resp: response(200, content, "Content-Length", "10"), w: want(10, 3, 3), data: "345", offset: 3, size: 10, length: 3},
		"ignored, open":  {resp: response(200, content), w: want(-1, 3, -1), data: "3456789", offset: 3, size: -1, length: -1},
		"ignored, past":  {resp: response(200, content), w: want(-1, 30, -1), offset: 30, size: -1, length: -1, reads: registry.ErrInvalid},
		"past the end":   {resp: response(200, content, "Content-Length", "10"), w: want(-1, 11, -1), opens: registry.ErrInvalid},
		"at the end":     {resp: response(200, content, "Content-Length", "10"), w: want(-1, 10, -1), offset: 10, size: 10},
		"other range":    {resp: response(206, "4", "Content-Range", "bytes 4-4/10"), w: want(10, 3, 1), opens: registry.ErrUnavailable},
		"range short":    {resp: response(206, "3", "Content-Range", "bytes 3-3/10"), w: want(10, 3, 3), opens: registry.ErrUnavailable},
		"no range":       {resp: response(206, "3"), w: want(10, 3, 3), opens: registry.ErrUnavailable},
		"range cut":      {resp: response(206, "3", "Content-Range", "bytes 3-5/10"), w: want(10, 3, 3), data: "3", offset: 3, size: 10, length: 3, reads: registry.ErrUnavailable},
		"204":            {resp: response(204, ""), w: want(10, 0, -1), opens: registry.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := NewBlob(c.resp, c.w)
			if registry.KindOf(err) != c.opens {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			defer b.Close()
			if o, l := b.Span(); o != c.offset || l != c.length || b.Descriptor().Size != c.size {
				t.Errorf("span %d %d of %d", o, l, b.Descriptor().Size)
			}
			var buf bytes.Buffer
			n, err := b.WriteTo(&buf)
			if registry.KindOf(err) != c.reads || buf.String() != c.data || n != int64(len(c.data)) {
				t.Errorf("%q, %v", buf.String(), err)
			}
		})
	}
}

func TestNewStat(t *testing.T) {
	for length, want := range map[string]int64{"10": 10, "-1": 7} {
		b := NewStat(response(200, "", "Content-Length", length), registry.Want{Descriptor: registry.Descriptor{Size: 7}})
		if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Error(n, err)
		}
		if _, l := b.Span(); l != 0 || b.Descriptor().Size != want {
			t.Errorf("%d of %d", l, b.Descriptor().Size)
		}
		if b.Via().Detail != "upstream" || b.Close() != nil {
			t.Error(b.Via())
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes 0-9/*", "bytes */10", "bytes 5-1/10", "bytes 0-9/5", "", "bytes -1-2/3", "bytes 0-9223372036854775807/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, size, ok := contentRange(s)
		if ok && (first < 0 || last < first || size >= 0 && last >= size) {
			t.Errorf("%q: %d-%d/%d", s, first, last, size)
		}
		b, err := NewBlob(response(206, content, "Content-Range", s), want(10, 3, 3))
		if err == nil {
			data, err := io.ReadAll(b)
			if len(data) > 3 || err != nil && !errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("%q: %q %v", s, data, err)
			}
		}
	})
}

// TestWiden: a server that ignores Range has sent the whole blob, which can be
// had then; one that does not has sent the run.
func TestWiden(t *testing.T) {
	answer := func(code int, rng, body string) *http.Response {
		return &http.Response{StatusCode: code, Header: http.Header{"Content-Range": {rng}}, ContentLength: int64(len(body)),
			Body: io.NopCloser(strings.NewReader(body))}
	}
	for _, c := range []struct {
		resp   *http.Response
		w      registry.Want
		widens bool
		want   string
	}{
		{answer(200, "", "0123456789"), registry.Want{Offset: 4, Length: 2}, true, "0123456789"},
		{answer(200, "", "0123456789"), registry.Want{Length: 2}, true, "0123456789"},
		{answer(206, "bytes 4-5/10", "45"), registry.Want{Offset: 4, Length: 2}, false, "45"},
		{answer(200, "", "0123456789"), registry.Want{Length: -1}, false, "0123456789"},
	} {
		c.w.Size = 10
		b, err := NewBlob(c.resp, c.w)
		if err != nil {
			t.Fatal(err)
		}
		if got := b.(registry.Widener).Widen(); got != c.widens {
			t.Errorf("%+v widens: %v", c.w, got)
		}
		if c.widens {
			if off, n := b.Span(); off != 0 || n != 10 {
				t.Errorf("%+v: widened to %d, %d", c.w, off, n)
			}
		}
		if got, err := io.ReadAll(b); err != nil || string(got) != c.want {
			t.Errorf("%+v: %q, %v", c.w, got, err)
		}
	}
}
