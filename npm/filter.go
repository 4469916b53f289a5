package npm

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/klauspost/compress/gzip"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

const (
	// maxFiltered bounds a question or an answer that is looked through for what
	// who asks may not see, unzipped: an audit of 100,000 packages, 250 search
	// results of 30 KB.
	maxFiltered = 8 << 20
	// searchSize is how many results there are if a client does not say, and
	// searchMost how many are asked for and looked through, which is as many as
	// npm's registry gives.
	searchSize = 20
	searchMost = 250
)

// unfiltered reports whether q's answer needs not be looked through.
func (h *handler) unfiltered(q request) bool {
	return q.who.Anonymous() && h.o.Open != nil && h.o.Open()
}

// mayPull is what the guard says about c for another package; a name that no
// package can have is not admitted.
func (h *handler) mayPull(ctx context.Context, c registry.Call, pkg string) error {
	if !ValidName(pkg) {
		return registry.Errorf(registry.ErrInvalid, "%.100q is not the name of a package", pkg)
	}
	c.Name, c.Whether = registry.Name{Space: space, Repo: pkg}, true
	return h.o.Service.Guard.Admit(ctx, &c)
}

// search answers GET /-/v1/search.
func (h *handler) search(w http.ResponseWriter, r *http.Request, q request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || query.Get("text") == "" {
		return registry.Errorf(registry.ErrInvalid, "\"text\" is required")
	}
	if h.unfiltered(q) {
		return h.passOn(w, r, q)
	}
	ctx, done, err := h.place(r, q)
	if err != nil {
		return err
	}
	defer done()
	from, size := number(query.Get("from"), 0), number(query.Get("size"), searchSize)
	query.Set("from", "0")
	query.Set("size", strconv.Itoa(searchMost))
	header := http.Header{"Accept": {mediaJSON}, "Accept-Encoding": {"gzip"}, "Npm-Command": r.Header.Values("Npm-Command")}
	resp, err := h.o.Upstreams.pass(ctx, http.MethodGet, q.ref, query.Encode(), header, nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return registry.Errorf(registry.ErrInvalid, "the registry behind does not understand this search")
	}
	body, err := readBounded(resp.Body, resp.Header.Get("Content-Encoding"))
	if err != nil {
		return &registry.Error{Kind: registry.ErrUnavailable, Text: "read search results", Public: "the registry behind answers a search with nonsense", Err: err}
	}
	results, err := h.visible(ctx, h.call(r, q, registry.Name{Space: space}), body, from, size)
	if err != nil {
		return err
	}
	reply.Record(w, registry.Via{Fwd: "miss", Detail: "upstream"})
	answer := w.Header()
	answer.Set("Cache-Control", "no-store")
	answer.Set("Content-Type", mediaJSON)
	answer.Set("Content-Length", strconv.Itoa(len(results)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(results) // the client may be gone
	}
	return nil
}

// visible is a page of search results without what c's principal may not pull.
// It is cut, and the total counted, once the others are gone: a gap in a page or
// a page that is full behind would tell that there is something with that text.
// What lies behind the first searchMost results is not to be had so.
func (h *handler) visible(ctx context.Context, c registry.Call, body []byte, from, size int) ([]byte, error) {
	var found struct {
		Objects []json.RawMessage `json:"objects"`
		Time    json.RawMessage   `json:"time,omitempty"`
		Total   int               `json:"total"`
	}
	nonsense := registry.Errorf(registry.ErrUnavailable, "the registry behind answers a search with nonsense")
	if err := json.Unmarshal(body, &found); err != nil {
		return nil, nonsense
	}
	kept := found.Objects[:0:0]
	for _, o := range found.Objects {
		var about struct {
			Package struct {
				Name string `json:"name"`
			} `json:"package"`
		}
		if json.Unmarshal(o, &about) == nil && h.mayPull(ctx, c, about.Package.Name) == nil {
			kept = append(kept, o)
		}
	}
	found.Total = len(kept)
	found.Objects = append([]json.RawMessage{}, kept[min(from, len(kept)):min(from+size, len(kept))]...)
	out, err := json.Marshal(found)
	if err != nil {
		return nil, nonsense
	}
	return out, nil
}

// number is a small count in a query.
func number(s string, unsaid int) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 1e6 {
		return unsaid
	}
	return n
}

// audit answers the questions about advisories. Nothing is asked about packages
// that who asks may not pull: neither does the answer tell of them, nor does
// the registry behind hear their names.
func (h *handler) audit(w http.ResponseWriter, r *http.Request, q request) error {
	if h.unfiltered(q) {
		return h.passOn(w, r, q)
	}
	ctx, done, err := h.place(r, q)
	if err != nil {
		return err
	}
	defer done()
	if r.ContentLength > maxFiltered {
		return &tooLong{maxFiltered}
	}
	raw, err := readBounded(http.MaxBytesReader(w, r.Body, maxFiltered), "")
	if err != nil {
		return err
	}
	plain, err := readBounded(bytes.NewReader(raw), r.Header.Get("Content-Encoding"))
	if err != nil {
		return err
	}
	call, ask := h.call(r, q, registry.Name{Space: space}), raw
	header := r.Header
	if q.ref == bulkPath {
		less, err := h.lessBulk(ctx, call, plain)
		if err != nil {
			return err
		}
		if less != nil {
			ask, header = less, r.Header.Clone()
			header.Del("Content-Encoding")
		}
	} else if err := h.auditTree(ctx, call, plain); err != nil {
		return err
	}
	resp, err := h.o.Upstreams.pass(ctx, http.MethodPost, q.ref, r.URL.RawQuery, header, bytes.NewReader(ask), int64(len(ask)))
	if err != nil {
		return err
	}
	relay(w, r, resp)
	return nil
}

// lessBulk is a bulk question without the packages that c's principal may not
// pull; nil if there are none of those. If it may pull none of them at all that
// is the error.
func (h *handler) lessBulk(ctx context.Context, c registry.Call, body []byte) ([]byte, error) {
	var asked map[string]json.RawMessage
	if err := parseJSON(body, &asked, false); err != nil {
		return nil, err
	}
	all := len(asked)
	var refused error
	for name := range asked {
		if err := h.mayPull(ctx, c, name); err != nil {
			if refused == nil || registry.KindOf(refused) == registry.ErrInvalid {
				refused = err
			}
			delete(asked, name)
		}
	}
	switch {
	case len(asked) == all:
		return nil, nil
	case len(asked) == 0:
		return nil, refused
	}
	less, err := json.Marshal(asked)
	return less, registry.Wrap(registry.ErrUnavailable, err, "write a question")
}

// auditTree reads the tree of packages that npm 6 and yarn 1 post, and admits c
// for each of them. A tree is refused as a whole: half of one would be answered
// with what nobody can make sense of.
func (h *handler) auditTree(ctx context.Context, c registry.Call, body []byte) error {
	bad := registry.Errorf(registry.ErrInvalid, "the body is not the JSON object that is expected here")
	d := json.NewDecoder(bytes.NewReader(body))
	type level struct{ object, names, value, below bool }
	var at []level
	for {
		token, err := d.Token()
		if err == io.EOF && len(at) == 0 {
			return nil
		}
		if err != nil {
			return bad
		}
		top := &level{}
		if len(at) > 0 {
			top = &at[len(at)-1]
		}
		switch token := token.(type) {
		case json.Delim:
			if token == '}' || token == ']' {
				at = at[:len(at)-1]
				continue
			}
			names := token == '{' && top.below
			top.value, top.below = false, false
			at = append(at, level{object: token == '{', names: names})
		case string:
			if !top.object || top.value {
				top.value, top.below = false, false
				continue
			}
			if top.names && ValidName(token) {
				if err := h.mayPull(ctx, c, token); err != nil {
					return err
				}
			}
			// What a member of these holds is named by packages; but a package
			// may be called so itself.
			top.below = !top.names && (token == "dependencies" || token == "requires")
			top.value = true
		default:
			top.value, top.below = false, false
		}
	}
}

// readBounded reads a body of at most maxFiltered bytes, unzipped.
func readBounded(body io.Reader, encoding string) ([]byte, error) {
	switch encoding {
	case "", "identity":
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, registry.Errorf(registry.ErrInvalid, "the body is not gzipped, as it is said to be")
		}
		defer z.Close()
		body = z
	default:
		return nil, registry.Errorf(registry.ErrInvalid, "Content-Encoding %.40q is not supported here", encoding)
	}
	b, err := io.ReadAll(io.LimitReader(body, maxFiltered+1))
	if err != nil {
		return nil, registry.Wrap(registry.ErrInvalid, err, "read a body")
	}
	if len(b) > maxFiltered {
		return nil, &tooLong{maxFiltered}
	}
	return b, nil
}
