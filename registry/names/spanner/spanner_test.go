package spanner_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	database "cloud.google.com/go/spanner/admin/database/apiv1"
	"cloud.google.com/go/spanner/admin/database/apiv1/databasepb"
	instance "cloud.google.com/go/spanner/admin/instance/apiv1"
	"cloud.google.com/go/spanner/admin/instance/apiv1/instancepb"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names/spanner"
)

const (
	project  = "projects/weir"
	theirOne = project + "/instances/test"
)

// emulator is a running emulator of Spanner with an instance.
type emulator struct {
	addr  string
	admin *database.DatabaseAdminClient
	made  atomic.Int32
}

// startEmulator starts one. It comes with Google's SDK, which is not everywhere:
// this is the one thing that the tests of weir may go without.
func startEmulator(t *testing.T) *emulator {
	t.Helper()
	server, err := exec.LookPath("emulator_main")
	if gateway, beside := exec.LookPath("gateway_main"); err != nil && beside == nil {
		server, err = filepath.Join(filepath.Dir(gateway), "emulator_main"), nil
	}
	if err != nil {
		server = "/usr/lib/google-cloud-sdk/bin/cloud_spanner_emulator/emulator_main"
	}
	if _, err := os.Stat(server); err != nil {
		t.Skipf("NOT TESTED: this machine has no Spanner emulator (emulator_main, of Google's SDK): %v", err)
	}
	e := &emulator{addr: lab.FreeAddr(t)}
	// Not by gateway_main, which adds HTTP and leaves this process behind when it
	// is stopped.
	p := lab.Start(t, lab.Command{Path: server, Args: []string{"--host_port", e.addr, "--override_max_databases_per_instance", "1000"}})
	options := spanner.ClientOptions(spanner.Options{Endpoint: e.addr})
	ctx := context.Background()
	instances, err := instance.NewInstanceAdminClient(ctx, options...)
	if err != nil {
		t.Fatal(err)
	}
	defer instances.Close()
	if e.admin, err = database.NewDatabaseAdminClient(ctx, options...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.admin.Close() })
	lab.Eventually(t, 30*time.Second, "the emulator makes an instance", func() error {
		if !p.Running() {
			t.Fatalf("the emulator does not run: %s", p.Log())
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		op, err := instances.CreateInstance(ctx, &instancepb.CreateInstanceRequest{Parent: project, InstanceId: "test",
			Instance: &instancepb.Instance{Config: project + "/instanceConfigs/emulator-config", DisplayName: "test", NodeCount: 1}})
		if err == nil {
			_, err = op.Wait(ctx)
		}
		return err
	})
	return e
}

// fresh makes a database without tables.
func (e *emulator) fresh(t testing.TB) spanner.Options {
	t.Helper()
	name := fmt.Sprintf("db%d", e.made.Add(1))
	op, err := e.admin.CreateDatabase(context.Background(), &databasepb.CreateDatabaseRequest{Parent: theirOne, CreateStatement: "CREATE DATABASE " + name})
	if err == nil {
		_, err = op.Wait(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	return spanner.Options{Database: theirOne + "/databases/" + name, Endpoint: e.addr}
}

// metadata is one that can be opened once more.
type metadata struct {
	*spanner.Metadata
	o spanner.Options
}

func (m metadata) Reopen(t *testing.T) registry.Metadata { return open(t, m.o) }

func open(t testing.TB, o spanner.Options) metadata {
	t.Helper()
	m, err := spanner.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return metadata{m, o}
}

func TestMetadata(t *testing.T) {
	e := startEmulator(t)
	t.Run("Suite", func(t *testing.T) {
		conformance.TestMetadata(t, func(t *testing.T) registry.Metadata { return open(t, e.fresh(t)) })
	})
	t.Run("Trimmed", func(t *testing.T) {
		o := e.fresh(t)
		o.Keep = 10
		conformance.TestMetadataTrimmed(t, open(t, o), 10)
	})
	t.Run("KeepsFewer", func(t *testing.T) { testKeepsFewer(t, e) })
	t.Run("SeveralNodes", func(t *testing.T) { testSeveralNodes(t, e) })
	t.Run("OpenedByMany", func(t *testing.T) { testOpenedByMany(t, e) })
	t.Run("NoDatabase", func(t *testing.T) { testNoDatabase(t, e) })
	t.Run("PrefixesOfBytes", func(t *testing.T) { testPrefixesOfBytes(t, e) })
	t.Run("Faults", func(t *testing.T) { testFaults(t, e) })
	t.Run("LostCommits", func(t *testing.T) { testLostCommits(t, e) })
	t.Run("LostRemoval", func(t *testing.T) { testLostRemoval(t, e) })
	t.Run("Down", func(t *testing.T) { testDown(t, e) })
}

// increment counts a key up, whatever it takes.
func increment(m registry.Metadata, key string) error {
	for {
		old, err := m.Get(context.Background(), key)
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return err
		}
		n, _ := strconv.Atoi(string(old.Value))
		if _, err = m.Put(context.Background(), key, old.Rev, []byte(strconv.Itoa(n+1))); !errors.Is(err, registry.ErrConflict) {
			return err
		}
	}
}

// counted checks that a key was counted up from 1 to n, once each.
func counted(t *testing.T, m registry.Metadata, key string, n int) {
	t.Helper()
	want := 1
	for r, err := range m.Changes(context.Background(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Key != key {
			continue
		}
		if string(r.Value) != strconv.Itoa(want) {
			t.Fatalf("change %d says %s where %d should be", r.Rev, r.Value, want)
		}
		want++
	}
	if want-1 != n {
		t.Errorf("counted to %d, want %d", want-1, n)
	}
}

// testSeveralNodes has clients of one database, as nodes are, which abort each
// other's transactions.
func testSeveralNodes(t *testing.T, e *emulator) {
	o := e.fresh(t)
	nodes := []metadata{open(t, o), open(t, o), open(t, o)}
	const rounds = 10
	var group sync.WaitGroup
	for _, m := range nodes {
		group.Go(func() {
			for range rounds {
				if err := increment(m, "n"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	for _, m := range nodes {
		counted(t, m, "n", len(nodes)*rounds)
	}
}

func testOpenedByMany(t *testing.T, e *emulator) {
	o := e.fresh(t)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			m, err := spanner.Open(context.Background(), o)
			if err != nil {
				t.Error(err)
				return
			}
			defer m.Close()
			if _, err := m.Put(context.Background(), fmt.Sprint(i), 0, []byte("v")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n, err := open(t, o).Head(t.Context()); n != 4 || err != nil {
		t.Errorf("head %d, %v", n, err)
	}
}

// testNoDatabase opens what is not there, which waiting does not mend.
func testNoDatabase(t *testing.T, e *emulator) {
	start := time.Now()
	_, err := spanner.Open(t.Context(), spanner.Options{Database: theirOne + "/databases/none", Endpoint: e.addr})
	if !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), "none") {
		t.Errorf("no such database: %v", err)
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
	for _, o := range []spanner.Options{{}, {Database: "x"}, {Database: theirOne + "/databases/a", Keep: -1}} {
		if _, err := spanner.Open(t.Context(), o); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// testKeepsFewer opens a database with a smaller Keep.
func testKeepsFewer(t *testing.T, e *emulator) {
	o := e.fresh(t)
	m := open(t, o)
	put := func(m registry.Metadata, from, to int) {
		for i := from; i <= to; i++ {
			if _, err := m.Put(t.Context(), fmt.Sprintf("k%03d", i), 0, []byte("v")); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(m, 1, 60)
	o.Keep = 8
	m = open(t, o)
	put(m, 61, 90)
	var kept int
	for _, err := range m.Changes(t.Context(), 82) {
		if err != nil {
			t.Fatal(err)
		}
		kept++
	}
	if kept != 8 {
		t.Errorf("%d are kept after 82", kept)
	}
	for _, err := range m.Changes(t.Context(), 70) {
		if !errors.Is(err, registry.ErrGone) {
			t.Errorf("after 70: %v", err)
		}
		break
	}
}

// testPrefixesOfBytes lists by what is no UTF-8, and so no text to Spanner.
func testPrefixesOfBytes(t *testing.T, e *emulator) {
	m := open(t, e.fresh(t))
	for _, key := range []string{"a", "é", "ê", "\u4e00", "z"} {
		if _, err := m.Put(t.Context(), key, 0, []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ prefix, after, want string }{
		{"\xc3", "", "éê"}, {"", "\xc3", "éê\u4e00"}, {"\xc3", "é", "ê"}, {"\xff", "", ""}, {"", "\xff", ""}, {"\ufffd", "", ""},
	} {
		got := ""
		for r, err := range m.List(t.Context(), c.prefix, c.after) {
			if err != nil {
				t.Fatalf("%q, %q: %v", c.prefix, c.after, err)
			}
			got += r.Key
		}
		if got != c.want {
			t.Errorf("%q after %q: %q, want %q", c.prefix, c.after, got, c.want)
		}
	}
}

func TestParse(t *testing.T) {
	const db = "projects/acme-prod/instances/weir/databases/meta_data"
	for address, want := range map[string]spanner.Options{
		"spanner://" + db: {Database: db},
		"spanner://" + db + "?endpoint=127.0.0.1:9010":           {Database: db, Endpoint: "127.0.0.1:9010"},
		"spanner://" + db + "?endpoint=http://localhost:9010":    {Database: db, Endpoint: "localhost:9010"},
		"spanner://projects/a.com:b/instances/weir/databases/db": {Database: "projects/a.com:b/instances/weir/databases/db"},
	} {
		got, err := spanner.Parse(address)
		if err != nil || got.Database != want.Database || got.Endpoint != want.Endpoint {
			t.Errorf("%s: %+v, %v", address, got, err)
		}
	}
	for _, address := range []string{"", "spanner://", "spanner:" + db, "dynamodb://" + db, "spanner://" + db + "/", "spanner://" + db + "/x",
		"spanner://projects/p/instances/i", "spanner://u:p@" + db, "spanner://" + db + "?endpoint=", "spanner://" + db + "?endpoint=a/b",
		"spanner://" + db + "?end=a:1", "spanner://" + db + "?endpoint=a:1&endpoint=b:1", "spanner://" + db + "#x", "spanner://" + db + "?endpoint=%zz",
		"spanner://projects/p/instances/I/databases/d\n"} {
		if got, err := spanner.Parse(address); err == nil {
			t.Errorf("%q: %+v", address, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spanner://projects/p/instances/i/databases/d?endpoint=127.0.0.1:1")
	f.Add("spanner://projects/p/instances/i/databases/d?endpoint=http://[::1]:1")
	f.Fuzz(func(t *testing.T, address string) {
		o, err := spanner.Parse(address)
		if err != nil {
			return
		}
		if strings.Count(o.Database, "/") != 5 || strings.ContainsAny(o.Database+o.Endpoint, " \n@?#") {
			t.Fatalf("%q: %+v", address, o)
		}
	})
}

func FuzzValid(f *testing.F) {
	for _, s := range []string{"", "é", "\xc3", "a\xff", "\ufffd\xff", "\xed\xa0\x80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v := spanner.Valid(s)
		if !strings.HasPrefix(s, v) || !utf8.ValidString(v) || utf8.ValidString(s) && v != s {
			t.Fatalf("%q: %q", s, v)
		}
	})
}
