package names_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

const childEnv = "WEIR_NAMES_CHILD"

// TestMain lets the tests run this binary again as a process to be killed.
func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		fmt.Fprintln(os.Stderr, bindForEver(path, os.Getenv(childEnv+"_VOLATILE") != ""))
		os.Exit(1)
	}
	if path := os.Getenv(metadataChildEnv); path != "" {
		fmt.Fprintln(os.Stderr, putForEver(path))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// bindForEver binds one name after the other and prints each that Bind has
// acknowledged; every third it binds again, every seventh it unbinds.
func bindForEver(path string, volatile bool) error {
	db, err := names.Open(path, names.Options{Volatile: volatile, SyncEvery: 10 * time.Millisecond})
	if err != nil {
		return err
	}
	start := 0
	for range db.List(context.Background(), "done", "", "") {
		start++
	}
	for i := start; ; i++ {
		b, err := db.Bind(context.Background(), name(i), registry.Binding{}, binding(i, time.Time{}))
		if err == nil && i%3 == 0 {
			b, err = db.Bind(context.Background(), name(i), b, binding(i+1, time.Time{}))
		}
		if err == nil && i%7 == 0 {
			_, err = db.Bind(context.Background(), name(i), b, registry.Binding{})
		}
		if err == nil {
			_, err = db.Bind(context.Background(), registry.Name{Space: "done", Repo: "n", Ref: name(i).Ref}, registry.Binding{}, binding(i, time.Time{}))
		}
		if err != nil {
			return fmt.Errorf("%d: %w", i, err)
		}
		fmt.Println(i)
	}
}

// TestKill kills a process while it binds, many times over one database, and
// looks for every name it had acknowledged.
func TestKill(t *testing.T) {
	for _, volatile := range []string{"", "yes"} {
		t.Run("volatile="+volatile, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "names.db")
			last := -1
			for round := range 6 {
				last = killed(t, path, volatile, 30+57*round)
				checkBound(t, path, volatile != "", last)
			}
		})
	}
}

// killed runs a child until it has acknowledged some bindings, kills it, and
// returns the last one acknowledged.
func killed(t *testing.T, path, volatile string, rounds int) int {
	return killedWith(t, rounds, childEnv+"="+path, childEnv+"_VOLATILE="+volatile)
}

func killedWith(t *testing.T, rounds int, env ...string) int {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last, seen := -1, 0
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if last, err = strconv.Atoi(lines.Text()); err != nil {
			t.Fatal(err)
		}
		if seen++; seen == rounds {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		} // what it printed before it died still counts
	}
	if err := cmd.Wait(); err == nil || seen < rounds {
		t.Fatalf("the process ended by itself after %d bindings: %v", seen, err)
	}
	return last
}

func checkBound(t *testing.T, path string, volatile bool, last int) {
	db, err := names.Open(path, names.Options{Volatile: volatile})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for i := range last + 1 {
		want, bound := binding(i, time.Time{}), i%7 != 0
		if i%3 == 0 {
			want = binding(i+1, time.Time{})
		}
		got, err := db.Lookup(context.Background(), name(i))
		if bound != (err == nil) || bound && got.Digest != want.Digest {
			t.Errorf("%d of %d: %+v, %v", i, last, got, err)
		}
	}
	// The one that was being bound may be there or not, but not for ever in
	// the way: the next child begins with it.
	if old, err := db.Lookup(context.Background(), name(last+1)); err == nil {
		if _, err := db.Bind(context.Background(), name(last+1), old, registry.Binding{}); err != nil {
			t.Error(err)
		}
	}
	done := registry.Name{Space: "done", Repo: "n", Ref: name(last + 1).Ref}
	if old, err := db.Lookup(context.Background(), done); err == nil {
		if _, err := db.Bind(context.Background(), done, old, registry.Binding{}); err != nil {
			t.Error(err)
		}
	}
	if aside, _ := filepath.Glob(path + ".damaged-*"); len(aside) > 0 {
		t.Errorf("killing a process damaged its database: %v", aside)
	}
}
