package audit_test

import (
	"path/filepath"
	"testing"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/audit"
)

// TestAdmitAllocates nothing where nothing is recorded.
func TestAdmitAllocates(t *testing.T) {
	l := open(t, audit.Options{File: filepath.Join(t.TempDir(), "audit.log"), Version: func() uint64 { return 1 }})
	defer closeLog(t, l)
	g, c := l.Guard(&warden{}), bound()
	if n := testing.AllocsPerRun(1000, func() { _ = g.Admit(t.Context(), c) }); n != 0 {
		t.Errorf("an admission allocates %v times", n)
	}
}

func BenchmarkAdmit(b *testing.B) {
	for _, bench := range []struct {
		name    string
		allowed bool
		err     error
	}{{"Allowed", false, nil}, {"AllowedRecorded", true, nil}, {"Refused", false, registry.ErrDenied}} {
		b.Run(bench.name, func(b *testing.B) {
			l := open(b, audit.Options{File: filepath.Join(b.TempDir(), "audit.log"), Allowed: bench.allowed})
			g, c := l.Guard(&warden{err: bench.err}), bound()
			b.ReportAllocs()
			for b.Loop() {
				_ = g.Admit(b.Context(), c)
			}
			_ = l.Close() // with an error if some were lost
		})
	}
}
