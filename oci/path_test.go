package oci

import (
	"regexp"
	"strings"
	"testing"

	"github.com/distribution/reference"
)

const (
	sha256Of = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	sha512Of = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
	sha1Of   = "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709"
)

func TestParsePath(t *testing.T) {
	long := strings.Repeat("a", 255)
	for _, c := range []struct {
		in    string
		want  path
		fault fault
	}{
		{"/v2/alpine/manifests/3.20", path{manifests, "alpine", "3.20"}, sound},
		{"/v2/a/b/c/manifests/" + sha256Of, path{manifests, "a/b/c", sha256Of}, sound},
		{"/v2/a/blobs/" + sha512Of, path{blobs, "a", sha512Of}, sound},
		{"/v2/a/tags/list", path{tags, "a", ""}, sound},
		{"/v2/a/referrers/" + sha256Of, path{referrers, "a", sha256Of}, sound},
		// Names that look like the protocol's own words.
		{"/v2/a/blobs/b/manifests/x", path{manifests, "a/blobs/b", "x"}, sound},
		{"/v2/x/manifests/manifests/latest", path{manifests, "x/manifests", "latest"}, sound},
		{"/v2/x/manifests/tags/list", path{tags, "x/manifests", ""}, sound},
		{"/v2/tags/list/tags/list", path{tags, "tags/list", ""}, sound},
		{"/v2/a/referrers/blobs/" + sha256Of, path{blobs, "a/referrers", sha256Of}, sound},
		{"/v2/a/blobs/uploads/manifests/x", path{manifests, "a/blobs/uploads", "x"}, sound},
		{"/v2/manifests/manifests/manifests", path{manifests, "manifests", "manifests"}, sound},
		// Uploads, which are refused but known.
		{"/v2/a/blobs/uploads/", path{uploads, "a", ""}, sound},
		{"/v2/a/blobs/uploads", path{uploads, "a", ""}, sound},
		{"/v2/a/blobs/uploads/0f-1", path{uploads, "a", ""}, sound},
		// Percent-encoding that changes nothing, and that would.
		{"/v2/a/manifests/" + strings.Replace(sha256Of, ":", "%3A", 1), path{manifests, "a", sha256Of}, sound},
		{"/v2/%61/manifests/%33", path{manifests, "a", "3"}, sound},
		{"/v2/a%2Fb/manifests/x", path{manifests, "a%2Fb", "x"}, badName},
		{"/v2/a/manifests%2Fx/manifests/x", path{manifests, "a/manifests%2Fx", "x"}, badName},
		{"/v2/a%252Fb/manifests/x", path{manifests, "a%252Fb", "x"}, badName},
		{"/v2/a%/manifests/x", path{manifests, "a%", "x"}, badName},
		{"/v2/a%4/manifests/x", path{manifests, "a%4", "x"}, badName},
		{"/v2/a%00/manifests/x", path{manifests, "a\x00", "x"}, badName},
		{"/v2/a/manifests/x%20y", path{manifests, "a", "x y"}, badTag},
		// Bad names.
		{"/v2//manifests/x", path{manifests, "", "x"}, badName},
		{"/v2/a//b/manifests/x", path{manifests, "a//b", "x"}, badName},
		{"/v2//a/manifests/x", path{manifests, "/a", "x"}, badName},
		{"/v2/a/../b/manifests/x", path{manifests, "a/../b", "x"}, badName},
		{"/v2/A/manifests/x", path{manifests, "A", "x"}, badName},
		{"/v2/a_-b/manifests/x", path{manifests, "a_-b", "x"}, badName},
		{"/v2/a___b/manifests/x", path{manifests, "a___b", "x"}, badName},
		{"/v2/_catalog/manifests/x", path{manifests, "_catalog", "x"}, badName},
		{"/v2/" + long + "/manifests/x", path{manifests, long, "x"}, sound},
		{"/v2/" + long + "a/manifests/x", path{manifests, long + "a", "x"}, badName},
		// Bad references.
		{"/v2/a/manifests/", path{manifests, "a", ""}, badTag},
		{"/v2/a/manifests/-x", path{manifests, "a", "-x"}, badTag},
		{"/v2/a/manifests/" + strings.Repeat("x", 129), path{manifests, "a", strings.Repeat("x", 129)}, badTag},
		{"/v2/a/manifests/sha256:baddigeststring", path{manifests, "a", "sha256:baddigeststring"}, badDigest},
		{"/v2/a/manifests/" + strings.ToUpper(sha256Of), path{manifests, "a", strings.ToUpper(sha256Of)}, badDigest},
		{"/v2/a/blobs/latest", path{blobs, "a", "latest"}, badDigest},
		{"/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", path{blobs, "a", "md5:d41d8cd98f00b204e9800998ecf8427e"}, badDigest},
		{"/v2/a/blobs/" + sha1Of, path{blobs, "a", sha1Of}, badDigest},
		{"/v2/a/referrers/latest", path{referrers, "a", "latest"}, badDigest},
		// Not a repository's.
		{"/v2", path{}, sound}, {"/v2/", path{}, sound}, {"/v2/_catalog", path{}, sound}, {"/v2/a", path{}, sound},
		{"/v2/manifests/x", path{}, sound}, {"/v2/tags/list", path{}, sound}, {"", path{}, sound}, {"/", path{}, sound},
		{"/v1/a/manifests/x", path{}, sound}, {"/v2/a/tags/list/", path{}, sound}, {"/v2/a/Manifests/x", path{}, sound},
	} {
		if got, fault := parsePath(c.in); got != c.want || fault != c.fault {
			t.Errorf("%s: %+v %d, want %+v %d", c.in, got, fault, c.want, c.fault)
		}
	}
}

func TestParsePathDoesNotAllocate(t *testing.T) {
	in := "/v2/library/alpine/manifests/" + sha256Of
	if n := testing.AllocsPerRun(100, func() { parsePath(in) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func anchored(re *regexp.Regexp) *regexp.Regexp {
	return regexp.MustCompile("^(?:" + re.String() + ")$")
}

// FuzzNames holds the grammar against distribution's.
func FuzzNames(f *testing.F) {
	tag := anchored(reference.TagRegexp)
	digest := anchored(reference.DigestRegexp)
	for _, s := range []string{"a", "a/b", "a.b_c__d---e/f0", "a..b", "a_", "-a", "a--", "a/-b", "A", "", "/", "a//b", "a__b", "a___b",
		"library/alpine", sha256Of, "a\n", "é", strings.Repeat("a/", 128) + "a", "latest", ".x", "_x", sha1Of} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := false
		if n, err := reference.WithName("host.test/" + s); err == nil {
			want = reference.Path(n) == s
		}
		if got := validRepo(s); got != want {
			t.Errorf("repository %q: %v, distribution's grammar says %v", s, got, want)
		}
		if got, want := validTag(s), tag.MatchString(s); got != want {
			t.Errorf("tag %q: %v, distribution's grammar says %v", s, got, want)
		}
		if validDigest(s) && !digest.MatchString(s) {
			t.Errorf("digest %q is none by distribution's grammar", s)
		}
	})
}

// FuzzParsePath looks for panics and for paths that mean two things.
func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/v2/a/manifests/x", "/v2/a/blobs/" + sha256Of, "/v2/a/tags/list", "/v2/%", "/v2/%2", "/v2/%zz/manifests/%",
		"/v2/a%2fb/manifests/x", "/v2//blobs/uploads/", "/v2/manifests/", "/v2/blobs/uploads/blobs/uploads"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, fault := parsePath(s)
		if p.kind == other || fault != sound {
			return
		}
		if !validRepo(p.repo) {
			t.Fatalf("%q: repository %q", s, p.repo)
		}
		var again string
		switch p.kind {
		case manifests:
			again = "/v2/" + p.repo + "/manifests/" + p.ref
		case blobs:
			again = "/v2/" + p.repo + "/blobs/" + p.ref
		case tags:
			again = "/v2/" + p.repo + "/tags/list"
		case referrers:
			again = "/v2/" + p.repo + "/referrers/" + p.ref
		case uploads:
			again = "/v2/" + p.repo + "/blobs/uploads/"
		}
		if q, fault := parsePath(again); q != p || fault != sound {
			t.Errorf("%q is %+v, but %q is %+v %d", s, p, again, q, fault)
		}
	})
}
