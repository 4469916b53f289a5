package npm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/weir-registry/weir/registry"
)

const testBase = "http://weir.example:5000/npm"

func views(t testing.TB, doc, pkg string) (full, corgi, index string) {
	t.Helper()
	to := target{base: testBase, pkg: pkg}
	var f, c, x bytes.Buffer
	if err := writeFull(strings.NewReader(doc), &f, to); err != nil {
		t.Fatal(err)
	}
	if err := writeCorgi(strings.NewReader(doc), &c, to); err != nil {
		t.Fatal(err)
	}
	if err := writeIndex(strings.NewReader(doc), &x, pkg); err != nil {
		t.Fatal(err)
	}
	return f.String(), c.String(), x.String()
}

const sum40 = "0123456789abcdef0123456789abcdef01234567"

// TestGolden has one small document for each rule.
func TestGolden(t *testing.T) {
	for _, c := range []struct{ name, pkg, doc, full, corgi string }{
		{name: "plain", pkg: "a",
			doc:   `{"_id":"a","name":"a","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"a","version":"1.0.0","description":"x","dist":{"shasum":"s","tarball":"https://r.example/a/-/a-1.0.0.tgz","fileCount":3,"signatures":[{"sig":"MEU="}]}}},"time":{"modified":"2021-01-01T00:00:00.000Z","1.0.0":"2020-01-01T00:00:00.000Z"},"readme":"# a"}`,
			full:  `{"_id":"a","name":"a","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"a","version":"1.0.0","description":"x","dist":{"shasum":"s","tarball":"http://weir.example:5000/npm/a/-/a-1.0.0.tgz","fileCount":3,"signatures":[{"sig":"MEU="}]}}},"time":{"modified":"2021-01-01T00:00:00.000Z","1.0.0":"2020-01-01T00:00:00.000Z"},"readme":"# a"}`,
			corgi: `{"name":"a","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"a","version":"1.0.0","dist":{"shasum":"s","tarball":"http://weir.example:5000/npm/a/-/a-1.0.0.tgz","fileCount":3,"signatures":[{"sig":"MEU="}]}}},"modified":"2021-01-01T00:00:00.000Z"}`},
		{name: "time without modified", pkg: "a",
			doc:   `{"name":"a","versions":{},"time":{"1.0.0":"2020-01-01T00:00:00.000Z","1.2.0":"2022-02-02T00:00:00.000Z","1.1.0":"2021-01-01T00:00:00.000Z","unpublished":{"time":"2030-01-01T00:00:00.000Z"}}}`,
			full:  `{"name":"a","versions":{},"time":{"1.0.0":"2020-01-01T00:00:00.000Z","1.2.0":"2022-02-02T00:00:00.000Z","1.1.0":"2021-01-01T00:00:00.000Z","unpublished":{"time":"2030-01-01T00:00:00.000Z"}}}`,
			corgi: `{"name":"a","versions":{},"dist-tags":{},"modified":"2022-02-02T00:00:00.000Z"}`},
		{name: "no versions, no time, no name", pkg: "@s/a",
			doc: `{"_id":"@s/a"}`, full: `{"_id":"@s/a"}`, corgi: `{"name":"@s/a","dist-tags":{},"versions":{}}`},
		{name: "abbreviated by the upstream", pkg: "a",
			doc:   `{"name":"a","dist-tags":{},"modified":"2020-01-01T00:00:00.000Z","versions":{"1.0.0":{"hasInstallScript":true,"version":"1.0.0"}}}`,
			full:  `{"name":"a","dist-tags":{},"modified":"2020-01-01T00:00:00.000Z","versions":{"1.0.0":{"hasInstallScript":true,"version":"1.0.0"}}}`,
			corgi: `{"name":"a","dist-tags":{},"versions":{"1.0.0":{"version":"1.0.0","hasInstallScript":true}},"modified":"2020-01-01T00:00:00.000Z"}`},
		{name: "what is empty is left out", pkg: "a",
			doc:   `{"name":"a","dist-tags":{},"versions":{"1.0.0":{"dependencies":{},"bin":"","os":[],"cpu":[ ],"deprecated":false,"engines":null,"_hasShrinkwrap":false,"libc":["musl"],"funding":{ },"peerDependenciesMeta":{"x":{"optional":true}},"scripts":{"install":""}}}}`,
			full:  `{"name":"a","dist-tags":{},"versions":{"1.0.0":{"dependencies":{},"bin":"","os":[],"cpu":[ ],"deprecated":false,"engines":null,"_hasShrinkwrap":false,"libc":["musl"],"funding":{ },"peerDependenciesMeta":{"x":{"optional":true}},"scripts":{"install":""}}}}`,
			corgi: `{"name":"a","dist-tags":{},"versions":{"1.0.0":{"libc":["musl"],"peerDependenciesMeta":{"x":{"optional":true}}}}}`},
		{name: "bundled and scripts", pkg: "a",
			doc:   `{"name":"a","dist-tags":{},"versions":{"1":{"bundledDependencies":["b"]},"2":{"bundledDependencies":["b"],"bundleDependencies":["c"]},"3":{"bundleDependencies":true},"4":{"scripts":{"test":"x"},"gypfile":true,"hasInstallScript":true},"5":{"scripts":{"preinstall":"x"}},"6":{"scripts":{"postinstall":"x"}},"7":{"scripts":{"install":"node-gyp rebuild"},"gypfile":true}}}`,
			full:  `{"name":"a","dist-tags":{},"versions":{"1":{"bundledDependencies":["b"]},"2":{"bundledDependencies":["b"],"bundleDependencies":["c"]},"3":{"bundleDependencies":true},"4":{"scripts":{"test":"x"},"gypfile":true,"hasInstallScript":true},"5":{"scripts":{"preinstall":"x"}},"6":{"scripts":{"postinstall":"x"}},"7":{"scripts":{"install":"node-gyp rebuild"},"gypfile":true}}}`,
			corgi: `{"name":"a","dist-tags":{},"versions":{"1":{"bundleDependencies":["b"]},"2":{"bundleDependencies":["c"]},"3":{"bundleDependencies":true},"4":{},"5":{"hasInstallScript":true},"6":{"hasInstallScript":true},"7":{"hasInstallScript":true}}}`},
		{name: "tarballs at odd places", pkg: "@s/a",
			doc:   `{"name":"@s/a","dist-tags":{},"versions":{"1.0.0":{"dist":{"tarball":"https://files.example/download/@s/a/1.0.0/abcdef"}},"2.0.0":{"dist":{"tarball":"https://r.example/@s/a/-/@s/a-2.0.0.tgz"}},"3.0.0":{"dist":{"tarball":"https://r.example/@s%2fa/-/old-v3.0.0.tgz?x=1"}},"4.0.0":{"dist":{"tarball":"https://r.example/14.0.0.tgz"}},"5.0.0":{"dist":{"tarball":null}},"6.0.0+b":{"dist":{"tarball":"https://r.example/a/-/a-6.0.0%2Bb.tgz"}}}}`,
			full:  `{"name":"@s/a","dist-tags":{},"versions":{"1.0.0":{"dist":{"tarball":"BASE/a-1.0.0.tgz"}},"2.0.0":{"dist":{"tarball":"BASE/a-2.0.0.tgz"}},"3.0.0":{"dist":{"tarball":"BASE/old-v3.0.0.tgz"}},"4.0.0":{"dist":{"tarball":"BASE/a-4.0.0.tgz"}},"5.0.0":{"dist":{"tarball":null}},"6.0.0+b":{"dist":{"tarball":"BASE/a-6.0.0+b.tgz"}}}}`,
			corgi: `{"name":"@s/a","dist-tags":{},"versions":{"1.0.0":{"dist":{"tarball":"BASE/a-1.0.0.tgz"}},"2.0.0":{"dist":{"tarball":"BASE/a-2.0.0.tgz"}},"3.0.0":{"dist":{"tarball":"BASE/old-v3.0.0.tgz"}},"4.0.0":{"dist":{"tarball":"BASE/a-4.0.0.tgz"}},"5.0.0":{"dist":{"tarball":null}},"6.0.0+b":{"dist":{"tarball":"BASE/a-6.0.0+b.tgz"}}}}`},
		{name: "attestations", pkg: "a",
			doc:   `{"name":"a","dist-tags":{},"versions":{"1.0.0":{"dist":{"attestations":{"url":"https://r.example/some/where/-/npm/v1/attestations/a@1.0.0","provenance":{"predicateType":"https://slsa.dev/provenance/v1"}}}},"2.0.0":{"dist":{"attestations":{"url":"https://r.example/odd"}}}}}`,
			full:  `{"name":"a","dist-tags":{},"versions":{"1.0.0":{"dist":{"attestations":{"url":"http://weir.example:5000/npm/-/npm/v1/attestations/a@1.0.0","provenance":{"predicateType":"https://slsa.dev/provenance/v1"}}}},"2.0.0":{"dist":{"attestations":{"url":"https://r.example/odd"}}}}}`,
			corgi: `{"name":"a","dist-tags":{},"versions":{"1.0.0":{"dist":{"attestations":{"url":"http://weir.example:5000/npm/-/npm/v1/attestations/a@1.0.0","provenance":{"predicateType":"https://slsa.dev/provenance/v1"}}}},"2.0.0":{"dist":{"attestations":{"url":"https://r.example/odd"}}}}}`},
		{name: "spaces, escapes and numbers stay", pkg: "a",
			doc:   "\n{ \"name\" : \"\\u0061\" , \"x\":1.00e+5, \"versions\" : { \"1.0.0\" : { \"n\" : -0.0 , \"di\\u0073t\" : { \"tarball\" : \"https://r.example/a/-/a-1.0.0.tgz\" , \"u\" : \"\\/\" } } } , \"dist-tags\" : { } }\n",
			full:  "{\"name\":\"\\u0061\",\"x\":1.00e+5,\"versions\":{\"1.0.0\":{ \"n\" : -0.0 , \"di\\u0073t\" : { \"tarball\" : \"http://weir.example:5000/npm/a/-/a-1.0.0.tgz\" , \"u\" : \"\\/\" } }},\"dist-tags\":{ }}",
			corgi: "{\"name\":\"\\u0061\",\"versions\":{\"1.0.0\":{\"dist\":{ \"tarball\" : \"http://weir.example:5000/npm/a/-/a-1.0.0.tgz\" , \"u\" : \"\\/\" }}},\"dist-tags\":{ }}"},
		{name: "not what they should be", pkg: "a",
			doc:   `{"name":"a","dist-tags":null,"versions":{"1.0.0":null,"2.0.0":{"dist":7},"3.0.0":[1]},"time":5}`,
			full:  `{"name":"a","dist-tags":null,"versions":{"1.0.0":null,"2.0.0":{"dist":7},"3.0.0":[1]},"time":5}`,
			corgi: `{"name":"a","dist-tags":null,"versions":{"2.0.0":{"dist":7}}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			full, corgi, _ := views(t, c.doc, c.pkg)
			base := testBase + "/" + c.pkg + "/-"
			if want := strings.ReplaceAll(c.full, "BASE", base); full != want {
				t.Errorf("full:\n%s\nwant\n%s", full, want)
			}
			if want := strings.ReplaceAll(c.corgi, "BASE", base); corgi != want {
				t.Errorf("abbreviated:\n%s\nwant\n%s", corgi, want)
			}
		})
	}
}

func TestIndex(t *testing.T) {
	doc := `{"name":"@s/a","dist-tags":{"latest":"2.0.0","odd\ttag":"1.0.0"},"versions":{` +
		`"1.0.0":{"dist":{"shasum":"` + sum40 + `","tarball":"https://r.example/@s/a/-/a-1.0.0.tgz"}},` +
		`"2.0.0":{"dist":{"integrity":"sha1-AAAA sha512-` + strings.Repeat("A", 86) + `== sha256-` + strings.Repeat("A", 43) + `=","shasum":"` + sum40 + `","tarball":"https://files.example/package.tgz"}},` +
		`"3.0.0":{"dist":{"integrity":"md5-AAAA","tarball":"https://files.example/package.tgz"}},` +
		`"4.0.0\t":{"dist":{}}}}`
	_, _, index := views(t, doc, "@s/a")
	for file, want := range map[string]entry{
		"a-1.0.0.tgz": {version: "1.0.0", file: "a-1.0.0.tgz", digest: "sha1:" + sum40, address: "https://r.example/@s/a/-/a-1.0.0.tgz"},
		"a-2.0.0.tgz": {version: "2.0.0", file: "a-2.0.0.tgz", own: "package.tgz", digest: registrySHA512Zero, address: "https://files.example/package.tgz"},
		"package.tgz": {version: "2.0.0", file: "a-2.0.0.tgz", own: "package.tgz", digest: registrySHA512Zero, address: "https://files.example/package.tgz"},
		"a-3.0.0.tgz": {version: "3.0.0", file: "a-3.0.0.tgz", own: "package.tgz", address: "https://files.example/package.tgz"},
		"a-4.0.0.tgz": {}, "1.0.0.tgz": {}, ".tgz": {}, "a-.tgz": {}, "sha1": {},
	} {
		e, ok, err := findFile(strings.NewReader(index), "@s/a", file)
		if err != nil || ok != (want.version != "") {
			t.Fatalf("%s: %v %v", file, ok, err)
		}
		if ok {
			var m map[string]any
			if err := json.Unmarshal([]byte(doc[e.offset:e.offset+e.length]), &m); err != nil || m["dist"] == nil {
				t.Errorf("%s: its object is %q", file, doc[e.offset:e.offset+e.length])
			}
		}
		e.offset, e.length = 0, 0
		if e != want {
			t.Errorf("%s: %+v, want %+v", file, e, want)
		}
	}
	if _, tagged, ok, err := findVersion(strings.NewReader(index), "latest"); tagged != "2.0.0" || ok || err != nil {
		t.Errorf("latest: %q %v %v", tagged, ok, err)
	}
	if tags, err := distTags(strings.NewReader(index)); string(tags) != `{"latest":"2.0.0"}` || err != nil {
		t.Errorf("%s %v", tags, err)
	}
}

var registrySHA512Zero = tarballDigest("sha512-"+strings.Repeat("A", 86)+"==", "")

func TestBrokenDocuments(t *testing.T) {
	for _, doc := range []string{"", " ", "null", "[]", "<html>", `{"a"`, `{"a":}`, `{"versions":{"1.0.0":{}`, `{"versions":{"1.0.0":{}}`, `{} {}`, `{"versions":{"1":{}}}x`,
		`{"a":01}`, `{"a":"` + "\n" + `"}`, `{"a" 1}`, `{"versions":{"1":{"dist":{"x":tru}}}}`} {
		err := writeFull(strings.NewReader(doc), io.Discard, target{testBase, "a"})
		if registry.KindOf(err) != registry.ErrCorrupt {
			t.Errorf("%q: %v", doc, err)
		}
	}
	failure := registry.Errorf(registry.ErrUnavailable, "the disk is gone")
	err := writeFull(io.MultiReader(strings.NewReader(`{"name":"a","versions":{`), failing{failure}), io.Discard, target{testBase, "a"})
	if registry.KindOf(err) != registry.ErrUnavailable {
		t.Errorf("a failing reader: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// bigDoc is a document of n versions of about size bytes each, made as it is
// read.
func bigDoc(n, size int) io.Reader {
	r, w := io.Pipe()
	go func() {
		pad := strings.Repeat("x", size)
		fmt.Fprint(w, `{"name":"big","dist-tags":{"latest":"1.0.0"},"versions":{`)
		for i := range n {
			comma := ","
			if i == 0 {
				comma = ""
			}
			fmt.Fprintf(w, `%s"1.0.%d":{"name":"big","version":"1.0.%d","readme":"%s","dependencies":{"left":"^1.0.0"},"dist":{"shasum":"%s","tarball":"https://r.example/big/-/big-1.0.%d.tgz"}}`, comma, i, i, pad, sum40, i)
		}
		fmt.Fprint(w, `},"time":{"modified":"2020-01-01T00:00:00.000Z"}}`)
		w.Close()
	}()
	return r
}

// TestMemoryIsOfOneVersion: what a view takes in memory follows the largest
// version, not the document.
func TestMemoryIsOfOneVersion(t *testing.T) {
	for name, write := range map[string]func(io.Reader) error{
		"full": func(r io.Reader) error { return writeFull(r, io.Discard, target{testBase, "big"}) },
		"corgi": func(r io.Reader) error {
			return view{corgi: true, gzip: true}.write(r, io.Discard, target{testBase, "big"})
		},
		"index": func(r io.Reader) error { return writeIndex(r, io.Discard, "big") },
	} {
		doc := &peak{r: bigDoc(10000, 6600)}
		runtime.GC()
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		doc.base = before.HeapAlloc
		if err := write(doc); err != nil {
			t.Fatal(err)
		}
		if doc.n < 64<<20 {
			t.Fatalf("the document has only %d bytes", doc.n)
		}
		if doc.most > 8<<20 {
			t.Errorf("%s: %d bytes were in use for a document of %d", name, doc.most, doc.n)
		}
	}
}

// peak measures the live heap now and then while it is read.
type peak struct {
	r    io.Reader
	base uint64
	n    int64
	next int64
	most uint64
}

func (p *peak) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if p.n += int64(n); p.n >= p.next {
		p.next = p.n + 4<<20
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if m.HeapAlloc > p.base {
			p.most = max(p.most, m.HeapAlloc-p.base)
		}
	}
	return n, err
}

func TestTenThousandVersions(t *testing.T) {
	doc, err := io.ReadAll(bigDoc(10000, 100))
	if err != nil {
		t.Fatal(err)
	}
	_, corgi, index := views(t, string(doc), "big")
	var m struct{ Versions map[string]any }
	if err := json.Unmarshal([]byte(corgi), &m); err != nil || len(m.Versions) != 10000 {
		t.Fatalf("%d versions, %v", len(m.Versions), err)
	}
	begin := time.Now()
	e, ok, err := findFile(strings.NewReader(index), "big", "big-1.0.9999.tgz")
	if !ok || err != nil || e.version != "1.0.9999" {
		t.Fatalf("%+v %v %v", e, ok, err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("one look-up took %v", took)
	}
}

// FuzzViews compares the views with what encoding/json makes of the same
// document.
func FuzzViews(f *testing.F) {
	for _, s := range []string{
		`{"name":"a","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"version":"1.0.0","dist":{"tarball":"https://r.example/a/-/a-1.0.0.tgz","attestations":{"url":"https://r.example/-/npm/v1/attestations/a@1"}}}},"time":{"modified":"x"}}`,
		`{"versions":{"1":{"dist":{"tarball":"x"},"scripts":{"install":"y"}}}}`, `{"versions":[],"time":{}}`, `{"versions":{"":{}}}`,
		"{\"a\\u0000\":\"\\ud800\",\"versions\":{\"\\\\\":{\"dist\":{\"tarball\":\"\\\"\"}}}}", `{ "versions" : { "1" : { "dist" : { } , "x" : [ { } , "]" ] } } }`,
		`{"dist-tags":{"a":"b"},"versions":{"1":{"bundledDependencies":[1],"cpu":["x",{"y":[]}]}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		to := target{testBase, "a"}
		var full, corgi, index bytes.Buffer
		err := writeFull(bytes.NewReader(doc), &full, to)
		err2 := writeCorgi(bytes.NewReader(doc), &corgi, to)
		err3 := writeIndex(bytes.NewReader(doc), &index, "a")
		if (err == nil) != (err2 == nil) || (err == nil) != (err3 == nil) {
			t.Fatalf("%v, %v, %v", err, err2, err3)
		}
		var want map[string]any
		strict := json.Unmarshal(doc, &want)
		if err != nil {
			if strict == nil && want != nil && jsontext.Value(doc).IsValid() {
				t.Fatalf("%v: %q", err, doc)
			}
			return
		}
		if strict != nil || !(&outline{}).fits(doc) {
			t.Fatalf("accepted: %v: %q", strict, doc)
		}
		if !jsontext.Value(doc).IsValid() {
			return // duplicate names or invalid UTF-8: passed on as they are
		}
		var got map[string]any
		if err := json.Unmarshal(full.Bytes(), &got); err != nil {
			t.Fatalf("full: %v: %s", err, full.Bytes())
		}
		moveAll(want)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("full:\n%s\nwant %v", full.Bytes(), want)
		}
		var short map[string]any
		if err := json.Unmarshal(corgi.Bytes(), &short); err != nil {
			t.Fatalf("abbreviated: %v: %s", err, corgi.Bytes())
		}
		if v, ok := want["versions"].(map[string]any); ok {
			maps.DeleteFunc(v, func(_ string, v any) bool { _, ok := v.(map[string]any); return !ok })
			if s, _ := short["versions"].(map[string]any); !slices.Equal(slices.Sorted(maps.Keys(s)), slices.Sorted(maps.Keys(v))) {
				t.Fatalf("abbreviated has the versions %v, not %v", s, v)
			}
		}
		_ = lines(&index, "", func(f []string) bool {
			e, ok := parseEntry(f)
			if !ok && f[0] != indexTag {
				t.Fatalf("index line %q", f)
			}
			if ok && !json.Valid(doc[e.offset:e.offset+e.length]) {
				t.Fatalf("%+v is %q", e, doc[e.offset:e.offset+e.length])
			}
			return true
		})
	})
}

// fits reports whether doc passes an outline byte by byte.
func (o *outline) fits(doc []byte) bool {
	for _, c := range doc {
		if !o.see([]byte{c}) {
			return false
		}
	}
	return o.whole()
}

// moveAll moves the addresses in a decoded packument, the plain way.
func moveAll(doc map[string]any) {
	versions, _ := doc["versions"].(map[string]any)
	for version, v := range versions {
		m, _ := v.(map[string]any)
		dist, _ := m["dist"].(map[string]any)
		if s, ok := dist["tarball"].(string); ok {
			dist["tarball"] = target{testBase, "a"}.tarball(fileName("a", version, s))
		}
		if a, ok := dist["attestations"].(map[string]any); ok {
			if raw, err := json.Marshal(a); err == nil {
				_ = json.Unmarshal(target{testBase, "a"}.attestations(nil, raw), &a)
			}
		}
	}
}
