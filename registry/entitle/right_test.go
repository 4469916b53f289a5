package entitle

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry"
)

func TestParseRight(t *testing.T) {
	for _, text := range []string{"pull *", "push *", "admin *", "pull oci:*", "admin npm:@acme/*", "push oci:a:b", "pull oci:**"} {
		r, err := ParseRight(text)
		if err != nil || r.String() != text {
			t.Errorf("%q: %v, %v", text, r, err)
		}
	}
	long := "pull oci:" + strings.Repeat("a", maxRight-len("pull oci:"))
	if _, err := ParseRight(long); err != nil {
		t.Error(err)
	}
	for _, text := range []string{long + "a", "", "*", "pull", "pull  *", "pull * ", " pull *", "Pull *", "delete *", "push pull *", "pull push oci:*",
		" oci:*", "pull **", "pull *:a", "pull oci:", "pull :a", "pull oci:a b", "pull oci:a\x00", "pull\toci:*"} {
		if _, err := ParseRight(text); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// texts gives all texts of up to n bytes.
func texts(alphabet string, n int) []string {
	list := []string{""}
	for from := 0; n > 0; n-- {
		to := len(list)
		for ; from < to; from++ {
			for i := range len(alphabet) {
				list = append(list, list[from]+alphabet[i:i+1])
			}
		}
	}
	return list
}

// TestIncludes compares inclusion with trying out all names: what is included
// has no name that the other lacks, and what is not has one. A pattern of four
// bytes is told from another by names of few more.
func TestIncludes(t *testing.T) {
	patterns := texts("ab*", 4)[1:]
	names := texts("abc", 6)
	sets := make([][]bool, len(patterns))
	for i, p := range patterns {
		sets[i] = make([]bool, len(names))
		for j, n := range names {
			sets[i][j] = compile(p).matches(n)
		}
	}
	for i, p := range patterns {
		for j, q := range patterns {
			want := true
			for k := range names {
				want = want && (sets[i][k] || !sets[j][k])
			}
			wide, narrow := Right{registry.Pull, "oci", p}, Right{registry.Pull, "oci", q}
			if got := wide.Includes(narrow); got != want {
				t.Errorf("%v includes %v: %v, want %v", wide, narrow, got, want)
			}
		}
	}
}

// TestWithin checks that a right within a set lets nothing that the set does not.
func TestWithin(t *testing.T) {
	w := world{Rand: rand.New(rand.NewPCG(5, 5))}
	yes := 0
	for range 3000 {
		var set []Right
		for range w.IntN(4) {
			set = append(set, parsed(t, w.right()))
		}
		one := parsed(t, w.right())
		if !Within(one, set) {
			continue
		}
		yes++
		for range 50 {
			c, ok := w.call(), false
			for _, r := range set {
				ok = ok || lets(r.String(), c)
			}
			if lets(one.String(), c) && !ok {
				t.Fatalf("%v is within %v, but lets %+v", one, set, c)
			}
		}
	}
	if yes < 100 {
		t.Errorf("only %d were within", yes)
	}
	for _, c := range []struct {
		one, set string
		want     bool
	}{
		{"pull *", "pull *", true}, {"pull *", "pull oci:* pull npm:*", false}, {"pull oci:a", "admin *", true},
		{"push oci:a", "pull oci:*", false}, {"pull oci:a", "push oci:*", true}, {"pull oci:a", "", false}, {"admin *", "push *", false},
	} {
		var set []Right
		for f := strings.Fields(c.set); len(f) > 1; f = f[2:] {
			set = append(set, parsed(t, f[0]+" "+f[1]))
		}
		if got := Within(parsed(t, c.one), set); got != c.want {
			t.Errorf("%s within %s: %v", c.one, c.set, got)
		}
	}
}

func parsed(t *testing.T, text string) Right {
	t.Helper()
	r, err := ParseRight(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func FuzzParseRight(f *testing.F) {
	for _, s := range []string{"pull *", "push oci:a*b", "admin npm:@a/*", "pull oci:\x00", "pull"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRight(text)
		if err != nil {
			if !errors.Is(err, registry.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if r.String() != text {
			t.Errorf("%q became %q", text, r)
		}
		if again, err := ParseRight(r.String()); err != nil || again != r || !r.Includes(r) || !Within(r, []Right{again}) {
			t.Errorf("%q: %v, %v", text, again, err)
		}
	})
}
