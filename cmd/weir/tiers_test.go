package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/trust"
)

// configFile writes a configuration with a data directory of its own.
func configFile(t *testing.T, text string) (file, data string) {
	t.Helper()
	dir := t.TempDir()
	file, data = filepath.Join(dir, "weir.yaml"), filepath.Join(dir, "data")
	if err := os.WriteFile(file, fmt.Appendf(nil, "data: %q\n%s\n", data, text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, data
}

func TestTiersUsage(t *testing.T) {
	plain, data := configFile(t, "")
	elsewhere, _ := configFile(t, "tls: {cert: /none/c, key: /none/k, ca: /none/a}")
	anywhere, _ := configFile(t, "tiers: 0.0.0.0:5001")
	damagedFile, damagedData := configFile(t, "")
	if err := os.MkdirAll(filepath.Join(damagedData, "tiers"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(damagedData, "tiers", "nodes.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string // stderr, without notes, begins with it
	}{
		{[]string{"tiers", "nonsense"}, 2, `weir: there is no command "nonsense" in "weir tiers"`},
		{[]string{"tiers", "invit"}, 2, `weir: there is no command "invit"; did you mean "invite"?`},
		{[]string{"tiers", "invite"}, 2, "weir: tiers invite: which NAME?"},
		{[]string{"tiers", "invite", "a", "b"}, 2, `weir: "weir tiers invite" takes one NAME, and not "b" as well`},
		{[]string{"tiers", "invite", "edge1", "-c", plain}, 2, "weir: tiers invite: by which address does the other node reach this one? (--address https://"},
		{[]string{"tiers", "invite", "edge1", "-c", anywhere}, 2, "weir: tiers invite: by which address does the other node reach this one? (--address https://"},
		{[]string{"tiers", "invite", "edge1", "-c", plain, "--address", "http://x:1"}, 1, `weir: "http://x:1" is not the address of a node`},
		{[]string{"tiers", "invite", "Edge 1", "-c", plain, "--address", "https://x:1"}, 1, `weir: "Edge 1" is not the name of a node: lower-case`},
		{[]string{"tiers", "invite", "edge1", "-c", plain, "--address", "https://x:1", "--expires", "9000h"}, 1, "weir: a code can be used for a second to 30 days"},
		{[]string{"tiers", "invite", "edge1", "-c", plain, "--expires", "soon"}, 2, `weir: invalid argument "soon" for "--expires"`},
		{[]string{"tiers", "invite", "edge1", "-c", elsewhere, "--address", "https://x:1"}, 1, "weir: this node's certificates come from elsewhere"},
		{[]string{"tiers", "join", "-c", plain}, 2, "weir: tiers join: which CODE?"},
		{[]string{"tiers", "join", "x", "-c", plain}, 1, `weir: the join code does not begin with "weir1_"`},
		{[]string{"tiers", "join", "x", "-c", elsewhere}, 1, "weir: this node's certificates come from elsewhere"},
		{[]string{"tiers", "join", "x", "-o", "xml"}, 2, "weir: -o xml: neither text nor json"},
		{[]string{"tiers", "ls", "-o", "xml"}, 2, "weir: -o xml: neither text nor json"},
		{[]string{"tiers", "ls", "x"}, 2, `weir: "weir tiers ls" takes no arguments`},
		{[]string{"tiers", "ls", "-c", damagedFile}, 1, "weir: " + filepath.Join(damagedData, "tiers", "nodes.json") + " cannot be used: "},
		{[]string{"tiers", "revoke"}, 2, "weir: tiers revoke: which NAME?"},
		{[]string{"tiers", "revoke", "edge1", "-c", plain}, 1, "weir: this node has invited nobody yet"},
	} {
		code, stdout, stderr := try(c.args...)
		if code != c.code || !strings.HasPrefix(stderr, c.want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("weir %q: %d\n got %q %q\nwant %q", c.args, code, stdout, stderr, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(data, "tiers", "ca.json")); err == nil {
		t.Error("commands that failed made an authority")
	}
}

// weirTiers runs the real binary as a process and returns what it printed.
func weirTiers(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"tiers"}, args...)...)
	cmd.Env = append(os.Environ(), "WEIR_TEST_MAIN=1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() != 0 {
		t.Fatalf("weir tiers %q: %v\n%s%s", args, err, out, &stderr)
	}
	return string(out)
}

// TestInviteAndJoin goes the whole way with the real binary: the commands on
// files, and the node behind made of what serve has.
func TestInviteAndJoin(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	shieldFile, shieldData := configFile(t, "tiers: "+addr)
	edgeFile, edgeData := configFile(t, "")
	log := slog.New(slog.DiscardHandler)
	shieldConfig, err := readConfig(shieldFile)
	if err != nil {
		t.Fatal(err)
	}
	// A running node holds its data directory; the commands do not need it.
	held, err := openData(shieldData)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	shield, err := openTrust(shieldConfig, log, registry.NoMeter{})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: shield.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, trust.NodeOf(r))
	})), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	go srv.Serve(tls.NewListener(l, shield.Server()))
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { shield.Run(ctx); close(ended) }()
	defer func() { cancel(); <-ended }()

	said := weirTiers(t, "invite", "edge1", "-c", shieldFile)
	_, after, ok := strings.Cut(said, "\n  weir tiers join ")
	code, _, _ := strings.Cut(after, "\n")
	if !ok || !strings.HasPrefix(said, "edge1 can join https://"+addr+", once, until ") {
		t.Fatal(said)
	}
	if ls := weirTiers(t, "ls", "-c", shieldFile); !strings.HasPrefix(ls, "NAME ") || !strings.Contains(ls, "edge1 ") || !strings.HasSuffix(ls, "invited\n") {
		t.Fatal(ls)
	}
	if said := weirTiers(t, "join", code[:50], code[50:], "-c", edgeFile); said != "This node is edge1 now at https://"+addr+". Its certificate renews by itself.\n\n"+
		"Add this to the configuration and start the node again:\n\n  next: https://"+addr+"\n" {
		t.Fatal(said)
	}
	if status, _, stderr := try("tiers", "join", code, "-c", shieldFile, "--data", t.TempDir()); status != 1 || !strings.Contains(stderr, "refuses: the join code was used at ") {
		t.Fatal(status, stderr)
	}
	var seen trust.Listing
	if err := json.Unmarshal([]byte(weirTiers(t, "ls", "-c", edgeFile, "-o", "json")), &seen); err != nil || len(seen.Joined) != 1 || seen.Joined[0].State != trust.StateOK {
		t.Fatalf("%+v %v", seen, err)
	}

	edgeConfig, err := readConfig(edgeFile)
	if err != nil {
		t.Fatal(err)
	}
	edge, err := openTrust(edgeConfig, log, registry.NoMeter{})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: edge.Transport()}
	defer client.CloseIdleConnections()
	ask := func() (int, string) {
		resp, err := client.Get("https://" + addr + "/v2/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	if status, text := ask(); status != 200 || text != "edge1" {
		t.Fatal(status, text)
	}
	if _, err := os.Stat(filepath.Join(edgeData, "tiers", "ca.json")); err == nil {
		t.Error("a node that only joined has an authority")
	}
	if said := weirTiers(t, "revoke", "edge1", "-c", shieldFile); !strings.HasPrefix(said, "edge1 is cut off. What counts no more: certificates: 1, unused join codes: 0\n  certificate ") {
		t.Fatal(said)
	}
	began := time.Now()
	if status, text := ask(); status != 403 || !strings.HasPrefix(text, "edge1 has been revoked; ") {
		t.Fatal(status, text)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("refused after %v", took)
	}
	if ls := weirTiers(t, "ls", "-c", shieldFile); !strings.HasSuffix(ls, " revoked\n") {
		t.Fatal(ls)
	}
}

func TestJoinAsEqual(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	first := &Config{Data: t.TempDir(), Tiers: l.Addr().String()}
	behind, err := openTrust(first, slog.New(slog.DiscardHandler), registry.NoMeter{})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: behind.Handler(http.NotFoundHandler())}
	go srv.Serve(tls.NewListener(l, behind.Server()))
	defer srv.Close()
	var inv trust.Invitation
	shieldFile, _ := configFile(t, "tiers: "+l.Addr().String())
	if err := json.Unmarshal([]byte(weirTiers(t, "invite", "b", "--equal", "-c", shieldFile, "--data", first.Data, "-o", "json")), &inv); err != nil || !inv.Equal {
		t.Fatal(inv, err)
	}
	file, data := configFile(t, "tiers: 127.0.0.1:5001")
	said := weirTiers(t, "join", inv.Code, "-c", file)
	if !strings.HasPrefix(said, "This node is b now, an equal of https://"+l.Addr().String()+": each admits") || !strings.Contains(said, `peers: {self: "https://127.0.0.1:5001", nodes: ["https://`) {
		t.Fatal(said)
	}
	if _, err := os.Stat(filepath.Join(data, "tiers", "ca.json")); err != nil {
		t.Error(err)
	}
	said = weirTiers(t, "revoke", "b", "-c", shieldFile, "--data", first.Data)
	if !strings.Contains(said, "But b was an equal and has the key of the authority") {
		t.Error(said)
	}
}

func TestTierAddress(t *testing.T) {
	for _, c := range []struct{ tiers, self, want string }{
		{"", "", ""},
		{"0.0.0.0:5001", "", ""},
		{":5001", "", ""},
		{"[::]:5001", "", ""},
		{"127.0.0.1:0", "", ""},
		{"10.0.0.1:5001", "", "https://10.0.0.1:5001"},
		{"[::1]:5001", "", "https://[::1]:5001"},
		{"0.0.0.0:5001", "https://a.example.com:5001", "https://a.example.com:5001"},
	} {
		if got := (&Config{Tiers: c.tiers, Peers: PeersConfig{Self: c.self}}).tierAddress(); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
