package peer

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
)

// TestRank: the order is the same everywhere and for ever, shares are even, and
// a node that goes moves only its own.
func TestRank(t *testing.T) {
	nodes := []string{"https://a:5001", "https://b:5001", "https://c:5001", "https://d:5001"}
	// It does not depend on the order in which the nodes are listed.
	turned := slices.Clone(nodes)
	slices.Reverse(turned)
	for i := range 100 {
		key := fmt.Sprint("sha256:", i)
		var a, b []string
		for _, k := range rank(nodes, key) {
			a = append(a, nodes[k])
		}
		for _, k := range rank(turned, key) {
			b = append(b, turned[k])
		}
		if !slices.Equal(a, b) || len(a) != len(nodes) {
			t.Fatalf("%s: %v and %v", key, a, b)
		}
	}
	share := map[string]int{}
	moved := 0
	for i := range 20_000 {
		key := string(digest.FromString(fmt.Sprint(i)))
		owner := nodes[rank(nodes, key)[0]]
		share[owner]++
		now := nodes[:3][rank(nodes[:3], key)[0]]
		if now != owner && owner != nodes[3] {
			moved++
		}
	}
	for n, count := range share {
		if count < 4500 || count > 5500 {
			t.Errorf("%s owns %d of 20000", n, count)
		}
	}
	if moved != 0 {
		t.Errorf("%d keys moved that did not belong to the node that went", moved)
	}
	// Nodes of different versions must agree.
	if got := score("https://shield-1.example.com:5001", "sha256:00"); got != 6835763561004032413 {
		t.Errorf("score is %d", got)
	}
}

func request(method, target, ranged string) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	if ranged != "" {
		r.Header.Set("Range", ranged)
	}
	return r
}

func TestWants(t *testing.T) {
	d := registry.Descriptor{Digest: digest.FromString("x"), Size: 100, MediaType: "a/b; c=\"d e\""}
	n := registry.Name{Space: "npm", Repo: "@a/b&c=d", Ref: "x+y z%.tgz"}
	for _, w := range []registry.Want{
		{Descriptor: d, From: n, Location: "https://x.test/a?b=c&d#e", Length: -1, Ahead: true, Background: true},
		{Descriptor: d, From: n, Offset: 5, Length: 10},
		{Descriptor: registry.Descriptor{Digest: d.Digest, Size: -1}, From: registry.Name{Space: "oci", Repo: "r"}, Offset: 7, Length: -1},
		{Descriptor: d, From: n, Length: 0},
	} {
		method := http.MethodGet
		if w.Length == 0 {
			method = http.MethodHead
		}
		got, err := parseWant(request(method, wantURL(w), outbound.RangeOf(w)))
		if err != nil || got != w {
			t.Errorf("%+v came as %+v, %v", w, got, err)
		}
	}
}

func TestQuestionsAndBindings(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b := registry.Binding{Descriptor: registry.Descriptor{Digest: digest.FromString("x"), Size: 3, MediaType: "a/b"},
		Validator: `W/"é&="`, Location: "https://x.test/", Checked: now.Add(-time.Hour)}
	q := registry.Question{Name: registry.Name{Space: "oci", Repo: "a/b", Ref: "c"}, Have: b, Since: now.Add(-time.Minute)}
	r := request(http.MethodGet, questionURL(q, now), "")
	got, err := parseQuestion(r.URL.RawQuery, now)
	q.Have.Checked = time.Time{} // of no use to who is asked
	if err != nil || got != q {
		t.Errorf("%+v came as %+v, %v", q, got, err)
	}
	for _, same := range []bool{false, true} {
		gotB, gotSame, err := parseBinding(bindingText(b, same, now), now)
		if err != nil || gotB != b || gotSame != same {
			t.Errorf("%+v came as %+v, %v", b, gotB, err)
		}
	}
	// A clock that is ahead makes nothing older than now.
	b.Checked = now.Add(time.Hour)
	if gotB, _, _ := parseBinding(bindingText(b, false, now), now); gotB.Checked != now {
		t.Errorf("checked %v", gotB.Checked)
	}
}

func TestVia(t *testing.T) {
	for v, want := range map[registry.Via]string{
		{Detail: "disk"}:                    "shield",
		{Fwd: "miss", Detail: "upstream"}:   "upstream",
		{Fwd: "miss", Detail: "shield"}:     "origin",
		{Fwd: "miss", Detail: "origin"}:     "origin",
		{Fwd: "stale", Detail: "something"}: "shield",
	} {
		if got := parseVia(viaText(v)); got.Detail != want || got.Fwd != "miss" {
			t.Errorf("%v: %v", v, got)
		}
	}
}

// FuzzRequests: whatever a node sends is refused or means one thing.
func FuzzRequests(f *testing.F) {
	f.Add(wantURL(registry.Want{Descriptor: registry.Descriptor{Digest: digest.FromString("x"), Size: 1}, From: registry.Name{Space: "oci", Repo: "r"}}), "bytes=1-2")
	f.Add("/weir/v1/name?space=oci&repo=a&since=99999999999999999999", "bytes=9223372036854775807-")
	f.Add("/weir/v1/blob/sha256:?space=%zz", "bytes=-1")
	f.Add("/weir/v1/name?space=oci&repo=a&have=sha1:"+string(digest.FromString("x"))[7:47]+"&size=-1", "bytes=2-1")
	f.Fuzz(func(t *testing.T, target, ranged string) {
		r, err := http.NewRequest(http.MethodGet, target, nil)
		if err != nil {
			return
		}
		r.Header["Range"] = []string{ranged}
		if w, err := parseWant(r); err == nil {
			if w.Offset < 0 || w.Size < -1 || !registry.ValidDigest(w.Digest) || w.From.Repo == "" {
				t.Errorf("%+v", w)
			}
			again := request(http.MethodGet, wantURL(w), ranged)
			if got, err := parseWant(again); err != nil || got != w {
				t.Errorf("%+v came as %+v, %v", w, got, err)
			}
		} else if registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("%v", err)
		}
		now := time.Now()
		if q, err := parseQuestion(r.URL.RawQuery, now); err == nil && (q.Name.Repo == "" || q.Since.After(now)) {
			t.Errorf("%+v", q)
		} else if err != nil && registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("%v", err)
		}
	})
}

// FuzzAnswers: whatever a node answers is refused or is what was asked for.
func FuzzAnswers(f *testing.F) {
	f.Add("digest=sha256:x&checked=1", "10 0 10", "miss;upstream", int64(0), int64(-1))
	f.Add("%", "-1 5 -1", ";", int64(5), int64(-1))
	f.Add("", "10 3 7 1", "", int64(3), int64(9))
	f.Fuzz(func(t *testing.T, binding, run, via string, offset, length int64) {
		if b, _, err := parseBinding(binding, time.Now()); err == nil && (!registry.ValidDigest(b.Digest) || b.Checked.After(time.Now())) {
			t.Errorf("%+v", b)
		}
		w := registry.Want{Offset: offset, Length: length}
		if size, at, n, err := parseRun(run, w); err == nil && (at != offset || size >= 0 && at+n > size) {
			t.Errorf("%q for %+v: %d %d %d", run, w, size, at, n)
		}
		if v := parseVia(via); v.Hit() || v.Detail == "" {
			t.Errorf("%q: %v", via, v)
		}
	})
}
