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

// pageOf cuts from tags, which are sorted, what a client asks for by n and
// last (distribution-spec, "Content Discovery"), and gives the query of the
// next page, "" if there is none.
func pageOf(tags []string, q url.Values) (page []string, next string, err error) {
	if q.Has("last") {
		last := q.Get("last")
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	if !q.Has("n") {
		return tags, "", nil
	}
	n, err := strconv.Atoi(q.Get("n"))
	if err != nil || n < 0 {
		return nil, "", registry.Errorf(registry.ErrInvalid, "n=%q is not a number of tags", clip(q.Get("n")))
	}
	if n == 0 || n >= len(tags) {
		return tags[:min(n, len(tags))], "", nil
	}
	query := url.Values{"n": {strconv.Itoa(n)}, "last": {tags[n-1]}}
	if ns := q.Get("ns"); ns != "" {
		query.Set("ns", ns)
	}
	return tags[:n], query.Encode(), nil
}

// linkTo is a Link field's value for the page of repo that query names.
func linkTo(repo, query string) string {
	return fmt.Sprintf(`</v2/%s/tags/list?%s>; rel="next"`, repo, query)
}
