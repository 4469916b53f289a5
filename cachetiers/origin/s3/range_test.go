package s3

import (
	"fmt"
	"testing"
)

// FuzzContentRange: what is taken for a range is one.
func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/100", "bytes 5-5/6", "bytes */100", "bytes 0-9/*", "", "bytes -1-2/3", "0-9/100"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, whole, ok := contentRange(s)
		if ok && (first < 0 || whole <= first) {
			t.Errorf("%q: %d of %d", s, first, whole)
		}
	})
	for _, c := range []struct{ first, whole int64 }{{0, 1}, {7, 1 << 50}} {
		if first, whole, ok := contentRange(fmt.Sprintf("bytes %d-%d/%d", c.first, c.first, c.whole)); !ok || first != c.first || whole != c.whole {
			f.Errorf("%+v: %d of %d", c, first, whole)
		}
	}
}
