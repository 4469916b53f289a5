package relay_test

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry/relay"
)

// What the process with the followers is told, in its environment.
const (
	manyAddress = "WEIR_TEST_FOLLOW"       // host:port
	manyWhere   = "WEIR_TEST_FOLLOW_WHERE" // the query
)

const (
	followers = 1000
	// mostEach is how much memory a follower may cost the node that it follows,
	// with its connection, TLS and HTTP.
	mostEach = 160 << 10
	// mostSpread is how long a change may take to reach all of them.
	mostSpread = time.Second
)

// TestManyFollowers: a node has a thousand others in front of it. They are a
// process of their own, so that what is measured is the one node.
func TestManyFollowers(t *testing.T) {
	if os.Getenv(manyAddress) != "" {
		followAll(t)
		return
	}
	rep := newReplica("db")
	rep.put(record("e/a", "b"))
	h := relay.New(relay.Config{Source: rep, Board: relay.NewBoard(nil), Node: func(r *http.Request) string { return r.Header.Get("Name") }})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := newPKI(t).config("node")
	config.ClientAuth = tls.NoClientCert
	server := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go server.Serve(tls.NewListener(l, config))
	defer server.Close()
	before := resident(t)

	is := rep.State()
	child := exec.Command(os.Args[0], "-test.run=^TestManyFollowers$")
	child.Env = append(os.Environ(), manyAddress+"="+l.Addr().String(),
		manyWhere+"="+url.Values{"database": {is.Database}, "version": {strconv.FormatUint(is.Version, 10)}, "hash": {is.Hash}}.Encode())
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	lines := bufio.NewScanner(out)
	said := func() string {
		if !lines.Scan() {
			t.Fatalf("the followers have ended: %v", lines.Err())
		}
		return lines.Text()
	}
	if got := said(); got != "connected" || h.Followers() != followers {
		t.Fatalf("%q; there are %d", got, h.Followers())
	}
	each := (resident(t) - before) / followers
	var took []time.Duration
	for i := range 30 {
		begun := time.Now()
		rep.put(record("e/a", fmt.Sprint(i)))
		at, err := strconv.ParseInt(said(), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Unix(0, at).Sub(begun))
	}
	slices.Sort(took)
	t.Logf("%d followers cost %d KiB each; a change reached all of them after %v (median), %v (slowest of %d)", followers, each>>10,
		took[len(took)/2].Round(100*time.Microsecond), took[len(took)-1].Round(100*time.Microsecond), len(took))
	if each > mostEach*conformance.RaceSlower || took[len(took)*9/10] > mostSpread*conformance.RaceSlower {
		t.Error("that is too much")
	}
}

// resident is this process's memory, in bytes, without what it could give back.
func resident(t *testing.T) int64 {
	t.Helper()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// followAll follows many times, says when all do, and when all have a change.
func followAll(t *testing.T) {
	counts := make([]atomic.Int64, 1<<10) // followers that have the nth change
	var connected atomic.Int64
	var say sync.Mutex
	line := func(text string) {
		say.Lock()
		defer say.Unlock()
		fmt.Println(text)
	}
	slots := make(chan struct{}, 64) // handshakes at once
	var all sync.WaitGroup
	for i := range followers {
		all.Go(func() {
			slots <- struct{}{}
			r, err := followOnce(fmt.Sprint("follower-", i))
			<-slots
			changes := 0
			for err == nil {
				var kind byte
				switch kind, err = nextKind(r); {
				case err != nil:
				case kind == relay.ConfirmFrame && changes == 0:
					changes = 1
					if connected.Add(1) == followers {
						line("connected")
					}
				case kind == relay.DeltaFrame:
					if counts[changes].Add(1) == followers {
						line(fmt.Sprint(time.Now().UnixNano()))
					}
					changes++
				}
			}
			fmt.Fprintln(os.Stderr, "a follower ended:", err)
		})
	}
	all.Wait()
}

// followOnce opens a stream.
func followOnce(name string) (*bufio.Reader, error) {
	c, err := tls.Dial("tcp", os.Getenv(manyAddress), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "GET %s?%s HTTP/1.1\r\nHost: node\r\nName: %s\r\n\r\n", streamPath, os.Getenv(manyWhere), name); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s", resp.Status)
	}
	return bufio.NewReader(resp.Body), nil
}

// nextKind is the kind of the next frame, whose payload it passes over.
func nextKind(r *bufio.Reader) (byte, error) {
	var head [9]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	_, err := r.Discard(int(binary.BigEndian.Uint32(head[1:5])))
	return head[0], err
}
