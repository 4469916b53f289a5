package npmlab

import (
	"bytes"
	"io"
	"testing"
)

func readCloser(b []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }

// New is [Start] for a test, which closes the registry when it ends.
func New(t testing.TB) *Registry {
	t.Helper()
	r, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// NewTUF is [StartTUF] for a test, which closes it when it ends.
func NewTUF(t testing.TB) *TUF {
	t.Helper()
	u, err := StartTUF()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}
