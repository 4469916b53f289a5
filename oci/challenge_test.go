package oci

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseChallenges(t *testing.T) {
	type params = map[string]string
	for in, want := range map[string][]challenge{
		`Bearer realm="https://a.test/token",service="a.test",scope="repository:x:pull,push"`: {{"bearer", params{"realm": "https://a.test/token", "service": "a.test", "scope": "repository:x:pull,push"}}},
		`bearer REALM=https://a.test/token, Service=a`:                                        {{"bearer", params{"realm": "https://a.test/token", "service": "a"}}},
		`Basic realm="a \"b\" \\c"`:                                                           {{"basic", params{"realm": `a "b" \c`}}},
		`Basic`:                                                                               {{"basic", params{}}},
		`Negotiate, Basic realm=x`:                                                            {{"negotiate", params{}}, {"basic", params{"realm": "x"}}},
		`Negotiate YWJj==, Bearer realm="x"`:                                                  {{"negotiate", params{}}, {"bearer", params{"realm": "x"}}},
		`Basic realm="x", Bearer realm="y",service=z`:                                         {{"basic", params{"realm": "x"}}, {"bearer", params{"realm": "y", "service": "z"}}},
		`Basic realm = "x" , charset = "UTF-8"`:                                               {{"basic", params{"realm": "x", "charset": "UTF-8"}}},
		`Bearer realm="a" service="b"`:                                                        {{"bearer", params{"realm": "a", "service": "b"}}},
		`Bearer realm="a",realm="b"`:                                                          {{"bearer", params{"realm": "a"}}},
		`Bearer ,,realm="a",,`:                                                                {{"bearer", params{"realm": "a"}}},
		`Bearer realm="never closed`:                                                          {{"bearer", params{}}},
		"":                                                                                    nil,
		`="x"`:                                                                                nil,
		`Bearer realm=""`:                                                                     {{"bearer", params{"realm": ""}}},
	} {
		if got := parseChallenges([]string{in}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v, want\n%+v", in, got, want)
		}
	}
	two := parseChallenges([]string{"Basic realm=x", "Bearer realm=y"})
	if len(two) != 2 || two[1].params["realm"] != "y" {
		t.Errorf("two fields: %+v", two)
	}
	if n := len(parseChallenges([]string{strings.Repeat("A,", 1000)})); n > maxChallenges {
		t.Errorf("%d challenges", n)
	}
}

func FuzzParseChallenges(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://a.test/t",service="a",scope="b"`, `Basic realm=x, Bearer y=z`, `Negotiate a==`, `"`, `a="\`, `,,,`, `x =`, `a b c`, "Basic \x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges([]string{s, s}) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) || len(c.params) > maxParams {
				t.Errorf("%q: %+v", s, c)
			}
			for name := range c.params {
				if name == "" || name != strings.ToLower(name) {
					t.Errorf("%q: parameter %q", s, name)
				}
			}
		}
	})
}

func FuzzNextLink(f *testing.F) {
	for _, s := range []string{`</v2/a/tags/list?n=1>; rel="next"`, `<a>; rel=prev, <b>; rel=next`, `<`, `<>`, `<a>;rel="first next"`, `<a<b>;rel=next`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := nextLink([]string{s}); got != "" && !strings.Contains(s, "<"+got+">") {
			t.Errorf("%q: %q", s, got)
		}
	})
}

func TestNextLink(t *testing.T) {
	for in, want := range map[string]string{
		`</v2/a/tags/list?last=b&n=2>; rel="next"`: "/v2/a/tags/list?last=b&n=2", `<a>; rel=prev, <b>; rel=next`: "b", `<a>; rel="prev next"; title=x`: "a",
		`<a>`: "", ``: "", `a; rel=next`: "", `<a>; REL=Next`: "a", `<a>; rel="nextone"`: "",
	} {
		if got := nextLink([]string{in}); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}
