package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/weir-registry/weir/registry"
)

// pageOfTags is how many tags are asked for at once; the upstream may give
// fewer.
const pageOfTags = 1000

// tagList is the document of tags/list.
type tagList struct {
	Name string   `json:"name"`
	Tags []string `json:"tags"`
}

// tags gets all pages of the upstream's list, and makes one sorted document of
// them. Names that are no tags are left out: nobody could ask for them.
func (rm *remote) tags(ctx context.Context, repo string) (registry.Binding, io.ReadCloser, error) {
	list := tagList{Name: repo, Tags: []string{}}
	room := int64(maxList)
	read := func(resp *http.Response) error {
		var page tagList
		if err := readJSON(resp.Body, &room, &page); err != nil {
			return err
		}
		for _, t := range page.Tags {
			if validTag(t) {
				list.Tags = append(list.Tags, t)
			}
		}
		return nil
	}
	h := http.Header{"Accept": {"application/json"}}
	tooMany := false
	err := rm.pages(ctx, repo, tagsRef+"?n="+strconv.Itoa(pageOfTags), h, func(resp *http.Response) bool {
		tooMany = resp.StatusCode == http.StatusBadRequest
		return !tooMany
	}, read)
	if err == nil && tooMany { // some registries refuse a page of that size
		err = rm.pages(ctx, repo, tagsRef, h, func(*http.Response) bool { return true }, read)
	}
	if err != nil {
		return registry.Binding{}, nil, err
	}
	slices.Sort(list.Tags)
	list.Tags = slices.Compact(list.Tags)
	return composed("application/json", list)
}

// readJSON reads one page into v; room is how many bytes all pages together
// may still have.
func readJSON(r io.Reader, room *int64, v any) error {
	data, err := io.ReadAll(io.LimitReader(r, *room+1))
	if err != nil {
		return err
	}
	if *room -= int64(len(data)); *room < 0 {
		return registry.Errorf(registry.ErrTooLarge, "the list is longer than %d bytes", maxList)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return &registry.Error{Kind: registry.ErrUnavailable, Text: "a list that makes no sense", Public: "the upstream answers with a list that makes no sense", Err: err}
	}
	return nil
}

// composed is a document of weir's own making. Its digest is left to whoever
// stores it.
func composed(mediaType string, v any) (registry.Binding, io.ReadCloser, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return registry.Binding{}, nil, registry.Wrap(registry.ErrUnavailable, err, "compose a list")
	}
	return registry.Binding{Descriptor: registry.Descriptor{Size: int64(len(data)), MediaType: mediaType}}, io.NopCloser(bytes.NewReader(data)), nil
}

// maxPage is how many tags one answer has at the most: the rest is behind its
// Link, and what a client holds weir to is then no more than a page.
const maxPage = 10_000

// A page is what a client asks for by n and last (distribution-spec, "Content
// Discovery").
type page struct {
	n     int
	last  string
	after bool // only what comes after last
	ns    string
}

func pageAsked(q url.Values) (page, error) {
	p := page{n: maxPage, last: q.Get("last"), after: q.Has("last"), ns: q.Get("ns")}
	if q.Has("n") {
		n, err := strconv.Atoi(q.Get("n"))
		if err != nil || n < 0 {
			return page{}, registry.Errorf(registry.ErrInvalid, "n=%q is not a number of tags", clip(q.Get("n")))
		}
		p.n = min(n, maxPage)
	}
	return p, nil
}

// cut reads the page out of a list that [remote.tags] has made, and gives the
// query of the next page, "" if there is none. It holds no more than the page.
func (p page) cut(list io.Reader) (tags []string, next string, err error) {
	tags = []string{}
	err = eachTag(list, func(tag string) bool {
		switch {
		case p.after && tag <= p.last:
			return true
		case p.n == 0:
			return false
		case len(tags) == p.n:
			query := url.Values{"n": {strconv.Itoa(p.n)}, "last": {tags[p.n-1]}}
			if p.ns != "" {
				query.Set("ns", p.ns)
			}
			next = query.Encode()
			return false
		}
		tags = append(tags, tag)
		return true
	})
	return tags, next, err
}

// eachTag gives the tags of a list, in their order, until yield returns false.
func eachTag(list io.Reader, yield func(tag string) bool) error {
	dec := json.NewDecoder(list)
	for depth := 0; ; {
		t, err := dec.Token()
		if err != nil {
			return registry.Wrap(registry.ErrUnavailable, err, "read the list of tags")
		}
		switch t {
		case json.Delim('['):
			depth++
		case json.Delim(']'):
			return nil
		default:
			if tag, ok := t.(string); ok && depth == 1 && !yield(tag) {
				return nil
			}
		}
	}
}

// linkTo is a Link field's value for the page of repo that query names.
func linkTo(repo, query string) string {
	return fmt.Sprintf(`</v2/%s/tags/list?%s>; rel="next"`, repo, query)
}
