package oci

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/weir-registry/weir/registry"
)

func (w *weir) tagsOf(target string) ([]string, string) {
	w.t.Helper()
	rec := w.get(target, 200, "")
	var list tagList
	if err := json.Unmarshal(rec.Body.Bytes(), &list); err != nil || list.Tags == nil {
		w.t.Errorf("%s: %s", target, rec.Body)
	}
	return list.Tags, rec.Header().Get("Link")
}

func TestTags(t *testing.T) {
	w, up := one(t)
	up.tags["library/a"] = []string{"c", "B", "a", "10", "a", "not a tag", "9"}
	all := []string{"10", "9", "B", "a", "c"}
	for q, want := range map[string]struct {
		tags []string
		link string
	}{
		"": {all, ""}, "?last=B": {all[3:], ""}, "?last=AAA": {all[2:], ""}, "?last=zzz": {[]string{}, ""}, "?last=": {all, ""},
		"?n=2": {all[:2], `</v2/a/tags/list?last=9&n=2>; rel="next"`}, "?n=2&last=9": {all[2:4], `</v2/a/tags/list?last=a&n=2>; rel="next"`},
		"?n=5": {all, ""}, "?n=99999999": {all, ""}, "?n=0": {[]string{}, ""}, "?n=0&last=B": {[]string{}, ""},
		"?n=4&ns=docker.io": {all[:4], `</v2/a/tags/list?last=a&n=4&ns=docker.io>; rel="next"`}, "?n=1&last=a": {all[4:], ""},
	} {
		tags, link := w.tagsOf("/v2/a/tags/list" + q)
		if !slices.Equal(tags, want.tags) || link != want.link {
			t.Errorf("%q: %v %s", q, tags, link)
		}
	}
	wantAsked(t, up, "all of it", "GET /v2/library/a/tags/list?n=1000")
	for _, q := range []string{"?n=-1", "?n=x", "?n=", "?n=1.5", "?n=99999999999999999999"} {
		w.get("/v2/a/tags/list"+q, 400, "UNSUPPORTED")
	}
	// Following Link by Link gives every tag once.
	var got []string
	for next := "/v2/a/tags/list?n=2"; next != ""; {
		tags, link := w.tagsOf(next)
		got = append(got, tags...)
		next = nextLink([]string{link})
	}
	if !slices.Equal(got, all) {
		t.Errorf("page by page: %v", got)
	}
	if rec := w.do("HEAD", "/v2/a/tags/list"); rec.Code != 200 || rec.Body.Len() != 0 {
		t.Errorf("HEAD: %d %q", rec.Code, rec.Body)
	}
	up.tags["library/none"] = []string{}
	if rec := w.get("/v2/none/tags/list", 200, ""); rec.Body.String() != `{"name":"none","tags":[]}` {
		t.Error(rec.Body)
	}
}

// TestUpstreamPages: the whole list or none.
func TestUpstreamPages(t *testing.T) {
	page := func(tags, link string) func(http.ResponseWriter, *http.Request) {
		return func(rw http.ResponseWriter, r *http.Request) {
			if link != "" {
				rw.Header().Set("Link", "<"+link+`>; rel="next"`)
			}
			send(rw, r, `{"tags":[`+tags+`]}`)
		}
	}
	for name, c := range map[string]struct {
		pages map[string]func(http.ResponseWriter, *http.Request)
		want  []string // nil: 503
	}{
		"three":     {map[string]func(http.ResponseWriter, *http.Request){"n=1000": page(`"c"`, "/v2/library/a/tags/list?p=2"), "p=2": page(`"b"`, "?p=3"), "p=3": page(`"a"`, "")}, []string{"a", "b", "c"}},
		"absolute":  {map[string]func(http.ResponseWriter, *http.Request){"n=1000": page(`"c"`, "http://hub.test/v2/library/a/tags/list?p=2"), "p=2": page(`"b"`, "")}, []string{"b", "c"}},
		"no n":      {map[string]func(http.ResponseWriter, *http.Request){"n=1000": func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(400) }, "": page(`"b"`, "")}, []string{"b"}},
		"circle":    {map[string]func(http.ResponseWriter, *http.Request){"n=1000": page(`"c"`, "?p=2"), "p=2": page(`"b"`, "?p=2")}, nil},
		"elsewhere": {map[string]func(http.ResponseWriter, *http.Request){"n=1000": page(`"c"`, "http://evil.test/v2/library/a/tags/list?p=2")}, nil},
		"user":      {map[string]func(http.ResponseWriter, *http.Request){"n=1000": page(`"c"`, "http://u:p@hub.test/v2/library/a/tags/list?p=2")}, nil},
		"gone":      {map[string]func(http.ResponseWriter, *http.Request){"n=1000": page(`"c"`, "?p=2"), "p=2": func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(404) }}, nil},
		"nonsense":  {map[string]func(http.ResponseWriter, *http.Request){"n=1000": page(`"c`, "")}, nil},
		"endless": {map[string]func(http.ResponseWriter, *http.Request){"n=1000": page(`"c"`, "?p=0"), "p": func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Link", "<?p="+r.URL.Query().Get("p")+"0>; rel=next")
			send(rw, r, `{"tags":["x"]}`)
		}}, nil},
		"large": {map[string]func(http.ResponseWriter, *http.Request){"n=1000": page(`"c"`, "?p=2"), "p=2": page(`"`+strings.Repeat("x", maxList)+`"`, "")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w, up := one(t)
			up.set(func(rw http.ResponseWriter, r *http.Request) bool {
				h := c.pages[r.URL.RawQuery]
				if h == nil {
					h = c.pages["p"]
				}
				h(rw, r)
				return true
			})
			if c.want == nil {
				if rec := w.do("GET", "/v2/a/tags/list"); rec.Code != 503 && rec.Code != 502 {
					t.Errorf("%d %s", rec.Code, rec.Body)
				}
			} else if tags, _ := w.tagsOf("/v2/a/tags/list"); !slices.Equal(tags, c.want) {
				t.Errorf("%v", tags)
			}
			if n := len(up.took()); n > maxPages {
				t.Errorf("%d pages", n)
			}
		})
	}
}

func (w *weir) referrersOf(target string, header http.Header) []v1.Descriptor {
	w.t.Helper()
	rec := w.get(target, 200, "")
	if ct := rec.Header().Get("Content-Type"); ct != v1.MediaTypeImageIndex {
		w.t.Errorf("%s: %s", target, ct)
	}
	var idx v1.Index
	if err := json.Unmarshal(rec.Body.Bytes(), &idx); err != nil || idx.SchemaVersion != 2 || idx.MediaType != v1.MediaTypeImageIndex || idx.Manifests == nil {
		w.t.Errorf("%s: %s", target, rec.Body)
	}
	for k, v := range header {
		if got := rec.Header().Values(k); !slices.Equal(got, v) {
			w.t.Errorf("%s: %s %q", target, k, got)
		}
	}
	return idx.Manifests
}

func referrer(i int, artifactType string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":"sha256:%064x","size":%d,"artifactType":%q,"annotations":{"k":"v"},"unknown":1}`, v1.MediaTypeImageManifest, i, i, artifactType)
}

func TestReferrers(t *testing.T) {
	indexOf := func(descs ...string) string {
		return `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[` + strings.Join(descs, ",") + `]}`
	}
	at := "/v2/a/referrers/" + sha256Of
	none := http.Header{"Oci-Filters-Applied": nil}
	filtered := http.Header{"Oci-Filters-Applied": {"artifactType"}}
	answer := func(body string) func(http.ResponseWriter, *http.Request) {
		return func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", v1.MediaTypeImageIndex)
			send(rw, r, body)
		}
	}
	fallback := "/v2/library/a/manifests/" + strings.Replace(sha256Of, ":", "-", 1)
	for name, c := range map[string]struct {
		paths map[string]func(http.ResponseWriter, *http.Request)
		all   int
		sigs  int
	}{
		"api":        {map[string]func(http.ResponseWriter, *http.Request){"/v2/library/a/referrers/" + sha256Of: answer(indexOf(referrer(1, "sig"), referrer(2, "sbom"), `{"digest":"x"}`))}, 2, 1},
		"api, empty": {map[string]func(http.ResponseWriter, *http.Request){"/v2/library/a/referrers/" + sha256Of: answer(indexOf()), fallback: answer(indexOf(referrer(1, "sig")))}, 0, 0},
		"tag schema": {map[string]func(http.ResponseWriter, *http.Request){fallback: answer(indexOf(referrer(1, "sig")))}, 1, 1},
		"neither":    {nil, 0, 0},
		"a web page": {map[string]func(http.ResponseWriter, *http.Request){"/v2/library/a/referrers/" + sha256Of: func(rw http.ResponseWriter, r *http.Request) { send(rw, r, "<html>") }, fallback: answer(indexOf(referrer(1, "sig")))}, 1, 1},
		"405":        {map[string]func(http.ResponseWriter, *http.Request){"/v2/library/a/referrers/" + sha256Of: func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(405) }}, 0, 0},
	} {
		w, up := one(t)
		up.set(func(rw http.ResponseWriter, r *http.Request) bool {
			if h := c.paths[r.URL.Path]; h != nil {
				h(rw, r)
				return true
			}
			return false
		})
		for range 2 {
			if n := len(w.referrersOf(at, none)); n != c.all {
				t.Errorf("%s: %d referrers", name, n)
			}
			if n := len(w.referrersOf(at+"?artifactType=sig", filtered)); n != c.sigs {
				t.Errorf("%s: %d signatures", name, n)
			}
		}
		if c.all > 0 {
			if body := w.get(at, 200, "").Body.String(); !strings.Contains(body, `"unknown":1`) || !strings.Contains(body, `"annotations"`) {
				t.Errorf("%s: fields were lost: %s", name, body)
			}
		}
		if n := len(up.took()); n > 2 {
			t.Errorf("%s: %d requests", name, n)
		}
	}
}

// TestReferrersFailures: no answer is not "no referrers": a signature that
// cannot be found must not look like one that does not exist.
func TestReferrersFailures(t *testing.T) {
	for _, only := range []string{"/referrers/", "/manifests/"} {
		for _, code := range []int{401, 403, 429, 500, 503} {
			w, up := one(t)
			up.set(func(rw http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, only) {
					rw.WriteHeader(code)
					return true
				}
				return false
			})
			if rec := w.do("GET", "/v2/a/referrers/"+sha256Of); rec.Code < 401 || rec.Code == 404 {
				t.Errorf("%s %d: %d %s", only, code, rec.Code, rec.Body)
			}
		}
	}
}

// TestReferrersOfNothing: asking about digests that nobody holds leaves nothing
// behind; what was asked about an image that is here stays for when its
// upstream is gone.
func TestReferrersOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, up := one(t)
		_, held := up.image(t, "library/a", "a", "x")
		w.pull("a", "x")
		rows := func() (n int) {
			for _, err := range w.svc.Names.List(t.Context(), Space, "docker.io/library/a", "") {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
			return n
		}
		before := rows()
		for i := range 20 {
			w.get(fmt.Sprintf("/v2/a/referrers/sha256:%064x", i), 200, "")
		}
		if n := rows() - before; n != 0 {
			t.Errorf("%d rows for digests that nobody holds", n)
		}
		w.get("/v2/a/referrers/"+string(held), 200, "")
		pass(time.Hour)
		up.set(func(rw http.ResponseWriter, r *http.Request) bool { rw.WriteHeader(503); return true })
		w.get("/v2/a/referrers/"+string(held), 200, "")
	})
}

func TestReferrersTag(t *testing.T) {
	for d, want := range map[string]string{
		sha256Of: strings.Replace(sha256Of, ":", "-", 1), sha512Of: "sha512-" + sha512Of[7:71], "a+b:c/d": "a-b-c-d",
	} {
		if got := referrersTag(dig(d)); got != want || !validTag(got) {
			t.Errorf("%s: %s", d, got)
		}
	}
}

// TestListsAreRefreshed: a list is asked for again after its fresh time, and a
// list whose bytes have gone from the cache is composed anew.
func TestListsAreRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, up := one(t)
		up.tags["library/a"] = []string{"1"}
		w.tagsOf("/v2/a/tags/list")
		up.tags["library/a"] = []string{"1", "2"}
		if tags, _ := w.tagsOf("/v2/a/tags/list"); len(tags) != 1 {
			t.Errorf("asked within the fresh time: %v", tags)
		}
		pass(time.Hour)
		if tags, _ := w.tagsOf("/v2/a/tags/list"); len(tags) != 2 {
			t.Errorf("%v", tags)
		}
		w.svc.Blobs = newWeir(t, network{}, Options{}).svc.Blobs // all evicted
		w.get("/v2/a/tags/list", 200, "")
	})
}

func TestPages(t *testing.T) {
	list := `{"name":"a","tags":["1","2","3","4"]}`
	for _, tt := range []struct{ query, want, next string }{
		{"", "1 2 3 4", ""},
		{"n=3&last=x", "", ""},
		{"n=2", "1 2", "last=2&n=2"},
		{"n=4", "1 2 3 4", ""},
		{"n=0", "", ""},
		{"last=2", "3 4", ""},
		{"last=25", "3 4", ""},
		{"n=1&last=2&ns=docker.io", "3", "last=3&n=1&ns=docker.io"},
		{"n=99999999", "1 2 3 4", ""},
	} {
		q, err := url.ParseQuery(tt.query)
		if err != nil {
			t.Fatal(err)
		}
		p, err := pageAsked(q)
		if err != nil {
			t.Fatal(err)
		}
		tags, next, err := p.cut(strings.NewReader(list))
		if got := strings.Join(tags, " "); got != tt.want || next != tt.next || err != nil || tags == nil {
			t.Errorf("%q: %q, next %q, %v", tt.query, got, next, err)
		}
	}
	for _, bad := range []string{"", "{", `{"tags":["1`, "[1", `"x"`} {
		if _, _, err := (page{n: 10}).cut(strings.NewReader(bad)); registry.KindOf(err) != registry.ErrUnavailable {
			t.Errorf("a list of %q: %v", bad, err)
		}
	}
}

// TestLongList: an answer has at most maxPage tags, and its Link the rest.
func TestLongList(t *testing.T) {
	var list strings.Builder
	list.WriteString(`{"name":"a","tags":["t000000"`)
	for i := 1; i < 2*maxPage+5; i++ {
		fmt.Fprintf(&list, `,"t%06d"`, i)
	}
	list.WriteString("]}")
	seen := 0
	for query := ""; ; {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		p, err := pageAsked(q)
		if err != nil {
			t.Fatal(err)
		}
		tags, next, err := p.cut(strings.NewReader(list.String()))
		if err != nil || len(tags) > maxPage || tags[0] != fmt.Sprintf("t%06d", seen) {
			t.Fatalf("%d tags from %q on, %v", len(tags), tags[0], err)
		}
		seen += len(tags)
		if next == "" {
			break
		}
		query = next
	}
	if seen != 2*maxPage+5 {
		t.Errorf("%d tags in all", seen)
	}
}
