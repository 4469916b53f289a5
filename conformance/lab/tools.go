package lab

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Root is the repository's directory.
func Root(t testing.TB) string {
	t.Helper()
	root, err := findRoot()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func findRoot() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// Tool finds a program that the tests need: where conformance/setup.sh put it,
// or in PATH. A program that is missing fails the test: a client that has not
// been tried has not been shown to work.
func Tool(t testing.TB, name string) string {
	t.Helper()
	root := Root(t)
	for _, dir := range []string{
		filepath.Join(root, ".tools", "bin"),
		filepath.Join(root, ".tools", "npm", "node_modules", ".bin"),
	} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	for _, name := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed: run conformance/setup.sh", name)
	return ""
}
