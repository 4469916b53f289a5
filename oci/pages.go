package oci

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
)

// maxPages bounds how many pages one list may have.
const maxPages = 1000

// pages asks for what and the pages that follow it by Link, and gives each
// good answer to read, which must not close it. first is told the status of
// the first answer before it is checked; if it returns false there is no list.
//
// The next page must be on the same registry: a Link elsewhere, or one that
// leads in a circle, makes the list ErrUnavailable, since half of a list is
// not to be taken for the whole.
func (rm *remote) pages(ctx context.Context, repo, what string, h http.Header,
	first func(*http.Response) bool, read func(*http.Response) error) error {
	seen := map[string]bool{}
	for next := what; next != ""; {
		if seen[next] || len(seen) >= maxPages {
			return registry.Errorf(registry.ErrUnavailable, "%s answers with a list that has no end", rm.name)
		}
		seen[next] = true
		resp, err := rm.do(ctx, http.MethodGet, repo, next, h)
		if err != nil {
			return err
		}
		if len(seen) == 1 && !first(resp) {
			resp.Body.Close()
			return nil
		}
		// A page that has gone in between is no proof that the list has.
		if len(seen) > 1 && resp.StatusCode == http.StatusNotFound {
			resp.StatusCode = http.StatusBadGateway
		}
		if err := rm.client.Check(resp, "list "+repo+" "+next); err != nil {
			return err
		}
		err = read(resp)
		resp.Body.Close()
		if err != nil {
			return registry.Wrap(registry.ErrUnavailable, err, "list "+repo+" "+next)
		}
		if next, err = rm.next(resp); err != nil {
			return err
		}
	}
	return nil
}

// next is the address of the page after resp; "" if there is none.
func (rm *remote) next(resp *http.Response) (string, error) {
	target := nextLink(resp.Header.Values("Link"))
	if target == "" {
		return "", nil
	}
	u, err := resp.Request.URL.Parse(target)
	if err != nil || u.User != nil || u.Scheme != rm.client.Base().Scheme || outbound.HostPort(u) != outbound.HostPort(rm.client.Base()) {
		return "", registry.Errorf(registry.ErrUnavailable, "%s answers with a list that goes on elsewhere", rm.name)
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery}).String(), nil
}

// nextLink is the target of the link with rel "next" (RFC 8288), "" if there
// is none.
func nextLink(fields []string) string {
	for _, f := range fields {
		for {
			_, rest, ok := strings.Cut(f, "<")
			if !ok {
				break
			}
			target, params, ok := strings.Cut(rest, ">")
			if !ok {
				break
			}
			// Parameters go on to the next link's "<"; a quoted one would only
			// make this find a link too few.
			end := strings.IndexByte(params, '<')
			if end < 0 {
				end = len(params)
			}
			if isNext(params[:end]) {
				return target
			}
			f = params[end:]
		}
	}
	return ""
}

func isNext(params string) bool {
	for p := range strings.FieldsFuncSeq(params, func(c rune) bool { return c == ';' || c == ',' }) {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		if !strings.EqualFold(strings.TrimSpace(name), "rel") {
			continue
		}
		for rel := range strings.FieldsSeq(strings.Trim(strings.TrimSpace(value), `"`)) {
			if strings.EqualFold(rel, "next") {
				return true
			}
		}
	}
	return false
}
