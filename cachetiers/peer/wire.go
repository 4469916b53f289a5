package peer

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// maxAge bounds ages, so that no arithmetic on them overflows.
const maxAge = 100 * 365 * 24 * time.Hour

func putName(v url.Values, n registry.Name) {
	v.Set("space", n.Space)
	v.Set("repo", n.Repo)
	if n.Ref != "" {
		v.Set("ref", n.Ref)
	}
}

func getName(v url.Values) (n registry.Name, err error) {
	n = registry.Name{Space: v.Get("space"), Repo: v.Get("repo"), Ref: v.Get("ref")}
	if n.Space == "" || n.Repo == "" {
		return n, registry.Errorf(registry.ErrInvalid, "the question is about no name")
	}
	return n, nil
}

func putDescriptor(v url.Values, d registry.Descriptor) {
	if d.Size >= 0 {
		v.Set("size", strconv.FormatInt(d.Size, 10))
	}
	if d.MediaType != "" {
		v.Set("type", d.MediaType)
	}
}

func getDescriptor(v url.Values, text string) (d registry.Descriptor, err error) {
	d = registry.Descriptor{Digest: digest.Digest(text), Size: -1, MediaType: v.Get("type")}
	if !registry.ValidDigest(d.Digest) {
		return d, registry.Errorf(registry.ErrInvalid, "%.80q is not a digest", text)
	}
	if size := v.Get("size"); size != "" {
		if d.Size, err = strconv.ParseInt(size, 10, 64); err != nil || d.Size < 0 {
			return d, registry.Errorf(registry.ErrInvalid, "%.40q is not a size", size)
		}
	}
	return d, nil
}

// wantURL is where a Want is asked for, without its run.
func wantURL(w registry.Want) string {
	v := url.Values{}
	putName(v, w.From)
	putDescriptor(v, w.Descriptor)
	if w.Location != "" {
		v.Set("location", w.Location)
	}
	if w.Ahead {
		v.Set("ahead", "1")
	}
	if w.Background {
		v.Set("background", "1")
	}
	if w.Shown {
		v.Set("shown", "1")
	}
	return blobPath + string(w.Digest) + "?" + v.Encode()
}

// parseWant is the Want of a request to wantURL.
func parseWant(r *http.Request) (registry.Want, error) {
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return registry.Want{}, registry.Errorf(registry.ErrInvalid, "the query is malformed")
	}
	w := registry.Want{Location: v.Get("location"), Ahead: v.Get("ahead") == "1", Background: v.Get("background") == "1", Shown: v.Get("shown") == "1", Length: -1}
	if w.From, err = getName(v); err != nil {
		return w, err
	}
	if w.Descriptor, err = getDescriptor(v, strings.TrimPrefix(r.URL.Path, blobPath)); err != nil {
		return w, err
	}
	if r.Method == http.MethodHead {
		w.Length = 0
		return w, nil
	}
	w.Offset, w.Length, err = parseRange(r.Header.Get("Range"))
	return w, err
}

// parseRange reads what outbound.RangeOf writes, and nothing else: "",
// "bytes=3-" and "bytes=3-5".
func parseRange(s string) (offset, length int64, err error) {
	if s == "" {
		return 0, -1, nil
	}
	bad := registry.Errorf(registry.ErrInvalid, "%.60q is not a range", s)
	spec, ok := strings.CutPrefix(s, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	if !ok || !dash {
		return 0, 0, bad
	}
	a, err := strconv.ParseUint(first, 10, 63)
	if err != nil {
		return 0, 0, bad
	}
	if last == "" {
		return int64(a), -1, nil
	}
	z, err := strconv.ParseUint(last, 10, 62)
	if err != nil || z < a {
		return 0, 0, bad
	}
	return int64(a), int64(z-a) + 1, nil
}

// questionURL is where a Question is asked. A time it names travels as an age.
func questionURL(q registry.Question, now time.Time) string {
	v := url.Values{}
	putName(v, q.Name)
	if q.Have.Digest != "" {
		v.Set("have", string(q.Have.Digest))
		putDescriptor(v, q.Have.Descriptor)
		if q.Have.Validator != "" {
			v.Set("validator", q.Have.Validator)
		}
		if q.Have.Location != "" {
			v.Set("location", q.Have.Location)
		}
	}
	if !q.Since.IsZero() {
		v.Set("since", ageOf(q.Since, now))
	}
	return namePath + "?" + v.Encode()
}

// parseQuestion is the Question of a request to questionURL.
func parseQuestion(query string, now time.Time) (q registry.Question, err error) {
	v, err := url.ParseQuery(query)
	if err != nil {
		return q, registry.Errorf(registry.ErrInvalid, "the query is malformed")
	}
	if q.Name, err = getName(v); err != nil {
		return q, err
	}
	if have := v.Get("have"); have != "" {
		if q.Have.Descriptor, err = getDescriptor(v, have); err != nil {
			return q, err
		}
		q.Have.Validator, q.Have.Location = v.Get("validator"), v.Get("location")
	}
	if since := v.Get("since"); since != "" {
		if q.Since, err = parseAge(since, now); err != nil {
			return q, err
		}
	}
	return q, nil
}

// ageOf is how long ago t was, in milliseconds; not less than none.
func ageOf(t, now time.Time) string {
	return strconv.FormatInt(max(now.Sub(t).Milliseconds(), 0), 10)
}

func parseAge(s string, now time.Time) (time.Time, error) {
	ms, err := strconv.ParseUint(s, 10, 63)
	if err != nil || ms > uint64(maxAge.Milliseconds()) {
		return time.Time{}, registry.Errorf(registry.ErrInvalid, "%.40q is not an age", s)
	}
	return now.Add(-time.Duration(ms) * time.Millisecond), nil
}

// bindingText is b as it travels. same says that it is what the asker has.
func bindingText(b registry.Binding, same bool, now time.Time) string {
	v := url.Values{}
	v.Set("digest", string(b.Digest))
	putDescriptor(v, b.Descriptor)
	if !b.Checked.IsZero() {
		v.Set("checked", ageOf(b.Checked, now))
	}
	if b.Validator != "" {
		v.Set("validator", b.Validator)
	}
	if b.Location != "" {
		v.Set("location", b.Location)
	}
	if b.Shown {
		v.Set("shown", "1")
	}
	if same {
		v.Set("same", "1")
	}
	return v.Encode()
}

func parseBinding(text string, now time.Time) (b registry.Binding, same bool, err error) {
	v, err := url.ParseQuery(text)
	if err != nil {
		return b, false, errors.New("the binding is malformed")
	}
	if b.Descriptor, err = getDescriptor(v, v.Get("digest")); err != nil {
		return b, false, err
	}
	if checked := v.Get("checked"); checked != "" {
		if b.Checked, err = parseAge(checked, now); err != nil {
			return b, false, err
		}
	}
	b.Validator, b.Location, b.Shown = v.Get("validator"), v.Get("location"), v.Get("shown") == "1"
	return b, v.Get("same") == "1", nil
}

// runText says which run of how large a blob an answer is; what is not known
// is -1.
func runText(size, offset, length int64) string {
	return strconv.FormatInt(size, 10) + " " + strconv.FormatInt(offset, 10) + " " + strconv.FormatInt(length, 10)
}

// parseRun reads it and compares it with what was asked for.
func parseRun(s string, w registry.Want) (size, offset, length int64, err error) {
	fields := strings.Split(s, " ")
	var n [3]int64
	for i := range n {
		if len(fields) != len(n) {
			return 0, 0, 0, errors.New("an answer that says of no run")
		}
		if n[i], err = strconv.ParseInt(fields[i], 10, 64); err != nil || n[i] < -1 {
			return 0, 0, 0, errors.New("an answer whose run makes no sense")
		}
	}
	offset, length, ok := w.Clip(n[0])
	if n[0] < 0 {
		length = -1 // whoever does not know the size does not know where a run ends
	}
	if w.Length == 0 && ok {
		return n[0], offset, 0, nil // a HEAD says of no run
	}
	if !ok || offset != n[1] || length != n[2] {
		return 0, 0, 0, errors.New("an answer that is another run")
	}
	return n[0], offset, length, nil
}

// viaText is how an answer came about, as it travels.
func viaText(v registry.Via) string { return v.Fwd + ";" + v.Detail }

// parseVia is how the asker says that an answer of a node came about: by way
// of the node if that had it, else from where that had it.
func parseVia(s string) registry.Via {
	fwd, detail, _ := strings.Cut(s, ";")
	v := registry.Via{Fwd: "miss", Detail: "shield"}
	switch {
	case fwd == "":
	case detail == "shield":
		v.Detail = "origin" // two nodes behind
	case detail == "upstream" || detail == "origin":
		v.Detail = detail
	}
	return v
}
