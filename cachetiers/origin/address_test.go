package origin_test

import (
	"context"
	"strings"
	"testing"

	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/cachetiers/origin/gcs"
	"github.com/weir-registry/weir/cachetiers/origin/s3"
)

// TestAddresses has what people write, and what they are told.
func TestAddresses(t *testing.T) {
	for _, c := range []struct{ text, want string }{ // "" is right
		{"s3://bucket", ""},
		{"s3://bucket/", ""},
		{"s3://my-bucket.example/a/b-c_d.e/?region=eu-west-1&endpoint=http://127.0.0.1:7070&path_style=true", ""},
		{"s3://bucket?endpoint=https://s3.example.com/base", ""},
		{"s4://bucket", "does not begin with s3://"},
		{"bucket", "does not begin with s3://"},
		{"s3:bucket", "names no bucket"},
		{"s3:///prefix", "names no bucket"},
		{"s3://Bucket", `"Bucket" cannot be a bucket's name`},
		{"s3://b", "cannot be a bucket's name"},
		{"s3://bucket:80/a", `"bucket:80" cannot be a bucket's name`},
		{"s3://key:secret@bucket/a", "credentials"},
		{"s4://key:secret@bucket/a", "does not begin with s3://"},
		{"s3://key:secret@bu\x7fcket", "is not an address"},
		{"s3://bucket/a//b", "an empty part"},
		{"s3://bucket/../b", "dots alone"},
		{"s3://bucket/a%20b", `the byte ' '`},
		{"s3://bucket/" + strings.Repeat("a", 600), "512 are the most"},
		{"s3://bucket#a", "a fragment"},
		{"s3://bucket?regoin=a", `unknown setting "regoin"; there are endpoint, path_style, region`},
		{"s3://bucket?region=a&region=b", `"region" is given twice`},
		{"s3://bucket?region=a/b", `region "a/b" is none such as`},
		{"s3://bucket?path_style=yes", `path_style is "yes", neither true nor false`},
		{"s3://bucket?endpoint=127.0.0.1:7070", `endpoint "127.0.0.1:7070" is not an address`},
		{"s3://bucket?endpoint=http://u:p@h", "is not an address"},
		{"s3://bucket?a=%zz", "cannot be read"},
		{"s3://bu\x7fcket", "is not an address"},
		{"gs://bucket/prefix?endpoint=http://127.0.0.1:4443/storage/v1/", ""},
		{"gs://bucket_with.all-of-it", ""},
		{"gs://bucket?region=a", `unknown setting "region"; there are endpoint`},
		{"gs://bucket?endpoint=", `endpoint "" is not an address`},
	} {
		check := s3.Check
		if strings.HasPrefix(c.text, "gs:") {
			check = gcs.Check
		}
		err := check(c.text)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error repeats a secret: %v", c.text, err)
		}
	}
	a, err := origin.ParseAddress("s3://bucket/a/b/?k=v", "s3", "k")
	if err != nil || a.Bucket != "bucket" || a.Prefix != "a/b/" || a.Settings["k"] != "v" || a.String() != "s3://bucket/a/b" {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestRegion: a bucket of Amazon's needs one, a server of one's own does not.
func TestRegion(t *testing.T) {
	for _, env := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"} {
		t.Setenv(env, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	if _, err := s3.Open(context.Background(), "s3://bucket", s3.Options{}); err == nil || !strings.Contains(err.Error(), "add ?region=") {
		t.Errorf("no region: %v", err)
	}
	for _, text := range []string{"s3://bucket?region=eu-west-1", "s3://bucket?endpoint=http://127.0.0.1:1"} {
		if _, err := s3.Open(context.Background(), text, s3.Options{}); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// FuzzAddress: no address makes a parser panic, and what is taken has keys
// that stay below their prefix.
func FuzzAddress(f *testing.F) {
	f.Add("s3://bucket/prefix?region=eu-west-1&endpoint=http://127.0.0.1:7070&path_style=true")
	f.Add("gs://bucket/a/b?endpoint=https://example.com")
	f.Add("s3://b%2f/%2e%2e/?region=%00")
	f.Fuzz(func(t *testing.T, text string) {
		s3.Check(text)
		gcs.Check(text)
		a, err := origin.ParseAddress(text, "s3", "endpoint")
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("an error without words")
			}
			return
		}
		if a.Prefix != "" && (!strings.HasSuffix(a.Prefix, "/") || strings.HasPrefix(a.Prefix, "/")) || strings.Contains("/"+a.Prefix, "//") ||
			strings.Contains("/"+a.Prefix, "/../") || strings.ContainsAny(a.Prefix+a.Bucket, " \x00?#%\\") || strings.Contains(a.Bucket, "/") {
			t.Errorf("%q became %+v", text, a)
		}
		again, err := origin.ParseAddress(a.String(), "s3")
		if err != nil || again.Bucket != a.Bucket || again.Prefix != a.Prefix {
			t.Errorf("%q reads as %+v, %v", a.String(), again, err)
		}
		a.Endpoint()
	})
}
