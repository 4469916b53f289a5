package names_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry/names"
)

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]names.Address{
		"/var/lib/weir/metadata.db":          {Scheme: "file", Name: "/var/lib/weir/metadata.db"},
		"data/../m.db":                       {Scheme: "file", Name: "m.db"},
		"file:///var/lib/weir/metadata.db":   {Scheme: "file", Name: "/var/lib/weir/metadata.db"},
		"file:///with%20blank.db":            {Scheme: "file", Name: "/with blank.db"},
		"dynamodb://weir":                    {Scheme: "dynamodb", Name: "weir"},
		"dynamodb://We.i_r-1/?region=eu-x-1": {Scheme: "dynamodb", Name: "We.i_r-1", Settings: map[string]string{"region": "eu-x-1"}},
		"dynamodb://weir?endpoint=http://127.0.0.1:4567&region=eu-west-1": {Scheme: "dynamodb", Name: "weir",
			Settings: map[string]string{"region": "eu-west-1", "endpoint": "http://127.0.0.1:4567"}},
		"dynamodb://" + strings.Repeat("t", 255): {Scheme: "dynamodb", Name: strings.Repeat("t", 255)},
	} {
		got, err := names.ParseAddress(text)
		if err != nil || got.Scheme != want.Scheme || got.Name != want.Name || !maps.Equal(got.Settings, want.Settings) {
			t.Errorf("%q is %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, part := range map[string]string{
		"": "no address", "a\x00b": "no address", "file://host/m.db": "file:///", "file:///m.db?x=1": "file:///", "file://": "file:///", "file:///a%00b": "file:///",
		"mysql://x":                                       "there are",
		"dynamodb://":                                     "name of a table",
		"dynamodb://ab":                                   "name of a table",
		"dynamodb://a/b":                                  "name of a table",
		"dynamodb://" + strings.Repeat("t", 256):          "name of a table",
		"dynamodb://weir?regoin=x":                        `unknown setting "regoin"; there are region, endpoint`,
		"dynamodb://weir?region=a&region=b":               "given twice",
		"dynamodb://weir?region=EU":                       "region",
		"dynamodb://weir?endpoint=127.0.0.1:1":            "endpoint",
		"dynamodb://weir?endpoint=http://u:p@127.0.0.1:1": "endpoint",
		"dynamodb://key:secret@weir":                      "credentials",
		"dynamodb://weir#x":                               "fragment",
		"dynamodb://weir?region=%zz":                      "question mark",
	} {
		a, err := names.ParseAddress(text)
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is %+v, %v; want an error with %q", text, a, err, part)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error has the secret: %v", text, err)
		}
	}
}

// FuzzParseAddress: what is taken is a file or has settings that are known.
func FuzzParseAddress(f *testing.F) {
	for _, text := range []string{"m.db", "file:///m.db", "dynamodb://weir?region=a&endpoint=http://h", "://", "file://%"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := names.ParseAddress(text)
		if err != nil {
			return
		}
		if a.Name == "" || strings.IndexByte(a.Name, 0) >= 0 || a.Scheme == "file" && len(a.Settings) > 0 || len(a.Settings) > 2 {
			t.Errorf("%q is taken for %+v", text, a)
		}
		if again, err := names.ParseAddress(a.String()); err == nil && again.Name != a.Name {
			t.Errorf("%q is %+v, and that is %+v", text, a, again)
		}
	})
}
