package npm

import (
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry"
)

func TestParsePath(t *testing.T) {
	for path, want := range map[string]request{
		"":                                 {route: routeRoot},
		"-/ping":                           {route: routePing, ref: "-/ping"},
		"-/ping/":                          {route: routePing, ref: "-/ping"},
		"lodash":                           {route: routePackument, pkg: "lodash", ref: ""},
		"lodash/":                          {route: routePackument, pkg: "lodash", ref: ""},
		"@s/n":                             {route: routePackument, pkg: "@s/n", ref: ""},
		"@s%2fn":                           {route: routePackument, pkg: "@s/n", ref: ""},
		"@s%2Fn":                           {route: routePackument, pkg: "@s/n", ref: ""},
		"%40s%2fn":                         {route: routePackument, pkg: "@s/n", ref: ""},
		"%40s/n":                           {route: routePackument, pkg: "@s/n", ref: ""},
		"-":                                {route: routePackument, pkg: "-", ref: ""},
		"-/-/--0.0.1.tgz":                  {route: routeTarball, pkg: "-", ref: "--0.0.1.tgz"},
		"@npm/-":                           {route: routePackument, pkg: "@npm/-", ref: ""},
		"@npm/-/-/--1.tgz":                 {route: routeTarball, pkg: "@npm/-", ref: "--1.tgz"},
		"a/1.0.0":                          {route: routeVersion, pkg: "a", ref: "1.0.0"},
		"a/%5E1.0.0":                       {route: routeVersion, pkg: "a", ref: "^1.0.0"},
		"a/%3E=1%20%3C2":                   {route: routeVersion, pkg: "a", ref: ">=1 <2"},
		"@s%2fn/latest":                    {route: routeVersion, pkg: "@s/n", ref: "latest"},
		"a/-/a-1.0.0+b.tgz":                {route: routeTarball, pkg: "a", ref: "a-1.0.0+b.tgz"},
		"a/-/a-1.0.0%2Bb.tgz":              {route: routeTarball, pkg: "a", ref: "a-1.0.0+b.tgz"},
		"@s/n/-/n-1.tgz":                   {route: routeTarball, pkg: "@s/n", ref: "n-1.tgz"},
		"@s%2fn/-/n-1.tgz":                 {route: routeTarball, pkg: "@s/n", ref: "n-1.tgz"},
		"@s/n/-/@s/n-1.tgz":                {route: routeTarball, pkg: "@s/n", ref: "n-1.tgz"},
		"@s/n/-/@s%2fn-1.tgz":              {route: routeTarball, pkg: "@s/n", ref: "n-1.tgz"},
		"@s/n/-/@t/n-1.tgz":                {},
		"-/package/@s%2fn/dist-tags":       {route: routeDistTags, pkg: "@s/n", ref: ""},
		"-/package/@s/n/dist-tags":         {route: routeDistTags, pkg: "@s/n", ref: ""},
		"-/package/a/dist-tags/x":          {},
		"-/user/org.couchdb.user:al.ice":   {route: routeLegacyLogin, ref: "al.ice"},
		"-/user/org.couchdb.user%3Aalice":  {route: routeLegacyLogin, ref: "alice"},
		"-/user/org.couchdb.user:a/-rev/1": {},
		"-/user/token/weir_x":              {route: routeLogout, ref: "weir_x"},
		"-/user/%74oken/weir_x":            {route: routeLogout, ref: "weir_x"},
		"-/user/token":                     {},
		"-/v1/login":                       {route: routeLogin, ref: "-/v1/login"},
		"-/v1/login/abc":                   {route: routeLoginPage, ref: "abc"},
		"-/v1/done/abc":                    {route: routeDone, ref: "abc"},
		"-/v1/done/abc/d":                  {},
		"-/npm/v1/tokens":                  {route: routeTokens, ref: "-/npm/v1/tokens"},
		"-/npm/v1/tokens/token/abc":        {route: routeToken, ref: "abc"},
		"-/npm/v1/user":                    {route: routeProfile, ref: "-/npm/v1/user"},
		exchangePath + "@s%2fn":            {route: routeExchange, pkg: "@s/n"},
		exchangePath + "n":                 {route: routeExchange, pkg: "n"},
		exchangePath + "n/m":               {},
		"-/npm/v1/keys":                    {route: routeKeys, ref: keysPath},
		attestationsPath + "a@1.0.0":       {route: routeAttestations, pkg: "a", ref: "1.0.0"},
		attestationsPath + "@s%2fn@1.0":    {route: routeAttestations, pkg: "@s/n", ref: "1.0"},
		attestationsPath + "@s/n@1.0":      {route: routeAttestations, pkg: "@s/n", ref: "1.0"},
		"a/b/c":                            {},
		"-/all":                            {},
	} {
		if got, err := parsePath(path); !reflect.DeepEqual(got, want) || err != nil {
			t.Errorf("%q: %+v, %v; want %+v", path, got, err, want)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"lodash", "@s%2fn/-/n-1.tgz", "%2e%2e/x", "-/npm/v1/attestations/@s%2fa@1", "a%00", "%252e%252e", "-/-/-", "@/@/@", "a//b", "-/package/@a/b/dist-tags"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := parsePath(s)
		if err != nil {
			if registry.KindOf(err) != registry.ErrInvalid {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		for _, bad := range []string{"\x00", "\\", "..", "%", "\n", "//"} {
			if q.pkg != "" && strings.Contains(q.pkg, bad) && bad != ".." {
				t.Fatalf("%q: the name %q", s, q.pkg)
			}
			if q.route != routeUnknown && strings.Contains(q.ref, bad) && bad != ".." {
				t.Fatalf("%q: the ref %q", s, q.ref)
			}
		}
		if q.pkg != "" && (!ValidName(q.pkg) || len(q.pkg) > maxName) {
			t.Fatalf("%q: the name %q", s, q.pkg)
		}
		if q.route == routeVersion || q.route == routeTarball {
			if q.ref == "." || q.ref == ".." || q.ref == "" || strings.Contains(q.ref, "/") {
				t.Fatalf("%q: the ref %q", s, q.ref)
			}
			again, err := parsePath(escapeName(q.pkg) + map[route]string{routeVersion: "/", routeTarball: "/-/"}[q.route] + url.PathEscape(q.ref))
			if err != nil && !strings.Contains(q.ref, "@") {
				t.Fatalf("%q: %+v does not come back: %v", s, q, err)
			}
			if err == nil && !reflect.DeepEqual(again, q) && q.pkg != "-" {
				t.Fatalf("%q: %+v comes back as %+v", s, q, again)
			}
		}
	})
}

func TestAccept(t *testing.T) {
	for accept, corgi := range map[string]bool{
		"": false, "*/*": false, mediaJSON: false, mediaCorgi: true,
		mediaCorgi + "; q=1.0, application/json; q=0.8, */*": true,
		mediaCorgi + ", */*":                                   true,
		"*/*, " + mediaCorgi:                                   true,
		"application/json, " + mediaCorgi:                      false,
		mediaCorgi + ", application/json":                      true,
		"application/json; q=0.9, " + mediaCorgi + ";q=0.5":    false,
		mediaCorgi + ";q=0":                                    false,
		mediaCorgi + ";q=0, */*":                               false,
		mediaCorgi + ";q=0.5, */*;q=1":                         false,
		"application/*, " + mediaCorgi + ";q=0.9":              false,
		mediaCorgi + ";q=x":                                    false,
		mediaCorgi + ";q=NaN, */*;q=0.1":                       false,
		strings.ToUpper(mediaCorgi) + " ; Q=0.5 , text/html":   true,
		"text/html, application/xhtml+xml, */*;q=0.8":          false,
		strings.Repeat("text/x;q=0.1,", 100) + "," + mediaJSON: false,
	} {
		h := http.Header{}
		if accept != "" {
			h.Set("Accept", accept)
		}
		if got := wantsCorgi(h); got != corgi {
			t.Errorf("Accept %q: %v", accept, got)
		}
	}
	for encoding, gzip := range map[string]bool{"": false, "gzip": true, "gzip, deflate, br": true, "zstd, gzip;q=0.5": true, "gzip;q=0": false, "*": true, "*;q=0": false,
		"identity": false, "gzip;q=0.5, identity": false, "br": false, "x-gzip": true, "gzip;q=0, *": false} {
		if got := wantsGzip(http.Header{"Accept-Encoding": {encoding}}); got != gzip {
			t.Errorf("Accept-Encoding %q: %v", encoding, got)
		}
	}
}

func FuzzAccept(f *testing.F) {
	for _, s := range []string{"*/*", mediaCorgi + ";q=1.0, application/json;q=0.8", ",,;;==q", "a;q=1e999", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, q := range qualities([]string{s}) {
			if !(q.q >= 0 && q.q <= 1) || q.name == "" {
				t.Fatalf("%q: %+v", s, q)
			}
		}
		if wantsCorgi(http.Header{"Accept": {s}}) && !strings.Contains(strings.ToLower(s), mediaCorgi) {
			t.Fatalf("%q wants the abbreviated form", s)
		}
	})
}

func TestTarballDigest(t *testing.T) {
	const sha512 = "le8DgAtRoZUyhKrjm6O9zEXbBHR3XPtT2siu8cNTTQ8GdiBPlTsYOzkQuPf9xBQRSlkxRwNNOXVK9r8N0hGJCg=="
	const sha1 = "sha1:297fb94a164c02e7eb8d37cde135be62456df446"
	want512 := tarballDigest("sha512-"+sha512, "")
	if !registry.ValidDigest(want512) || !strings.HasPrefix(string(want512), "sha512:95ef03800b51a195") {
		t.Fatalf("%q", want512)
	}
	for _, c := range []struct{ integrity, shasum, want string }{
		{"", sha1[5:], sha1},
		{"", strings.ToUpper(sha1[5:]), sha1},
		{"", "297f", ""},
		{"", "", ""},
		{"sha512-" + sha512, sha1[5:], string(want512)},
		{"sha1-KX+5ShZMAufrjTfN4TW+YkVt9EY= sha512-" + sha512 + "?opt", "", string(want512)},
		{"sha1-KX+5ShZMAufrjTfN4TW+YkVt9EY=", "", sha1},
		{"sha1-KX+5ShZMAufrjTfN4TW+YkVt9EY", "", sha1},
		{"md5-AAAA sha512-short", sha1[5:], sha1},
		{"sha512", "", ""},
		{"sha512-" + strings.Repeat("!", 88), "", ""},
	} {
		if got := tarballDigest(c.integrity, c.shasum); string(got) != c.want {
			t.Errorf("%q %q: %s", c.integrity, c.shasum, got)
		}
	}
}

func FuzzIntegrity(f *testing.F) {
	f.Add("sha512-AAAA sha1-KX+5ShZMAufrjTfN4TW+YkVt9EY=", sum40)
	f.Add("sha256-?-", "x")
	f.Fuzz(func(t *testing.T, integrity, shasum string) {
		if d := tarballDigest(integrity, shasum); d != "" && !registry.ValidDigest(d) {
			t.Fatalf("%q %q: %q", integrity, shasum, d)
		}
	})
}

// FuzzFileName: whatever the document says, what is in a view can be asked for.
func FuzzFileName(f *testing.F) {
	f.Add("@s/a", "1.0.0", "https://r.example/x/y-1.0.0.tgz")
	f.Add("a", "", "::")
	f.Fuzz(func(t *testing.T, pkg, version, tarball string) {
		if !ValidName(pkg) || !plainSegment(version) || len(version) > 20 {
			return
		}
		file := fileName(pkg, version, tarball)
		if q, err := parsePath(escapeName(pkg) + "/-/" + url.PathEscape(file)); err != nil || q.route != routeTarball || q.ref != file {
			if len(file) <= maxRef && !strings.HasPrefix(file, "@") {
				t.Fatalf("%q %q %q: %q cannot be asked for: %+v %v", pkg, version, tarball, file, q, err)
			}
		}
	})
}

func TestOutline(t *testing.T) {
	long := strings.Repeat("n", maxName)
	escaped := strings.Repeat(`\u006e`, maxName)
	for _, c := range []struct {
		pkg, doc       string
		whole, foreign bool
	}{
		{"a", `{"name":"a","versions":{}}`, true, false},
		{"a", `{"versions":{},"name":"a"}`, true, false},
		{"a", ` { "n\u0061me" : "\u0061" } `, true, false},
		{"a", `{"_id":"b"}`, true, false},
		{"a", `{"versions":{"1":{"name":"b"}},"author":{"name":"b"},"maintainers":[{"name":"b"},"name","b"]}`, true, false},
		{"a", `{"name":null,"versions":{}}`, true, false},
		{"a", `{"name":["b"],"versions":{}}`, true, false},
		{"a", `{"x":"name","y":"b","name":"a"}`, true, false},
		{"a", `{"name":"a","description":"b"}`, true, false},
		{"@s/a", `{"name":"@s\/a"}`, true, false},
		{"@s/a", `{"name":"a"}`, true, true},
		{"a", `{"name":"b","versions":{}}`, true, true},
		{"a", `{"name":"A"}`, true, true},
		{"a", `{"name":""}`, true, true},
		{"a", `{"name":"a\u0000"}`, true, true},
		{"a", `{"n\u0061me":"b"}`, true, true},
		{"a", `{"versions":{"1":{}},"name" : "b"}`, true, true},
		{"a", `{"name":"a","name":"b"}`, true, true},
		{"a", `{"x":1}`, false, false},
		{"a", `{"x":"name"}`, false, false},
		{"a", `{"name":"a"`, false, false},
		{long, `{"name":"` + long + `"}`, true, false},
		{long, `{"name":"` + escaped + `"}`, true, false},
		{long, `{"name":"` + escaped + `n"}`, true, true},
		{long, `{"name":"` + long + escaped + `"}`, true, true},
		{"", `{"name":"b"}`, true, false},
		{"", `{"keys":[]}`, true, false},
	} {
		o := &outline{packument: c.pkg}
		if whole := o.fits([]byte(c.doc)); whole != c.whole || o.foreign != c.foreign {
			t.Errorf("%.30s: %.80s: whole %v, another's %v", c.pkg, c.doc, whole, o.foreign)
		}
	}
}
