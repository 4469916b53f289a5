package cachetiers_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

const (
	killDir   = "WEIR_TIERS_CHILD"       // the directory; set: this is the child
	killRound = "WEIR_TIERS_CHILD_ROUND" // the seed
	killFrom  = "WEIR_TIERS_CHILD_FROM"  // the first blob to put in the durable store
	killLimit = 12 << 20
)

// killLibrary is what is pulled: three times what the disk holds, some of it in
// segments.
func killLibrary() *library {
	var sizes []int
	for i := range 60 {
		sizes = append(sizes, 500+i*i*550)
	}
	return newLibrary(8, sizes...)
}

func killTier(t *testing.T, dir string, lib *library) (*cachetiers.Disk, *cachetiers.Tier) {
	quiet := slog.New(slog.DiscardHandler)
	d, err := cachetiers.OpenDisk(filepath.Join(dir, "cache"), cachetiers.DiskOptions{Limit: killLimit, Log: quiet})
	check(t, err)
	return d, cachetiers.NewTier(d, lib, cachetiers.Options{Name: "disk", Log: quiet, SegmentFrom: 512 << 10, Segment: 256 << 10, Streams: 3, Linger: time.Millisecond})
}

func killDurable(t *testing.T, dir string) *cachetiers.Disk {
	d, err := cachetiers.OpenDisk(filepath.Join(dir, "durable"), cachetiers.DiskOptions{Durable: true, Log: slog.New(slog.DiscardHandler)})
	check(t, err)
	return d
}

// killBlob is what the child puts in the durable store as its nth.
func killBlob(n int) []byte { return conformance.Bytes(9<<20+uint64(n), 1+n*7919%90_000) }

// TestKillChild is the process that is killed, and nothing if it is not run as
// one: it pulls through a tier and puts into a durable store, for ever, and
// prints what it has done.
func TestKillChild(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		return
	}
	round, _ := strconv.Atoi(os.Getenv(killRound))
	from, _ := strconv.Atoi(os.Getenv(killFrom))
	lib := killLibrary()
	_, tier := killTier(t, dir, lib)
	durable := killDurable(t, dir)
	fmt.Println("begun")
	for i := range 5 {
		go func() {
			rng := rand.New(rand.NewPCG(uint64(round), uint64(i)))
			for {
				if err := lib.pull(tier, rng); err != nil {
					fmt.Println("WRONG", err)
					os.Exit(3)
				}
				fmt.Println("pulled")
			}
		}()
	}
	for n := from; ; n++ {
		if err := put(durable, killBlob(n)); err != nil {
			fmt.Println("WRONG", err)
			os.Exit(3)
		}
		fmt.Println("kept", n)
	}
}

// runAndKill runs a child until it has printed some lines, kills it, and returns
// the first blob that it did not acknowledge.
func runAndKill(t *testing.T, dir string, round, from, lines int) int {
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillChild$")
	cmd.Env = append(os.Environ(), killDir+"="+dir, killRound+"="+strconv.Itoa(round), killFrom+"="+strconv.Itoa(from))
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	seen := 0
	for said := bufio.NewScanner(out); said.Scan(); {
		if strings.HasPrefix(said.Text(), "WRONG") {
			t.Errorf("round %d: %s", round, said.Text())
		}
		if n, ok := strings.CutPrefix(said.Text(), "kept "); ok {
			last, err := strconv.Atoi(n)
			check(t, err)
			from = last + 1
		}
		if seen++; seen == lines {
			check(t, cmd.Process.Kill())
		} // what it printed before it died still counts
	}
	if err := cmd.Wait(); err == nil || seen < lines {
		t.Fatalf("round %d: the process ended by itself after %d lines: %v", round, seen, err)
	}
	return from
}

// killCounts is what the rounds came to.
type killCounts struct {
	wrong, leaked, lost, parts int
	starts                     []time.Duration
}

// TestKill kills a process that fills, commits, evicts and keeps, at random
// moments, and looks at what it left: no wrong byte, no temporary file, nothing
// acknowledged lost, and a quick start. WEIR_SOAK is the number of rounds.
func TestKill(t *testing.T) {
	rounds := 8
	if n, err := strconv.Atoi(os.Getenv("WEIR_SOAK")); err == nil {
		rounds = n
	}
	dir := t.TempDir()
	var c killCounts
	from := 0
	for round := range rounds {
		from = runAndKill(t, dir, round, from, 1+rand.IntN(250))
		c.afterKill(t, dir, round, from)
	}
	slices.Sort(c.starts)
	median := c.starts[len(c.starts)/2] // the machine may be busy with other things for one of them
	t.Logf("%d rounds of kill -9: %d wrong, %d files leaked, %d of %d acknowledged blobs lost, %d fills left in part; a start takes %v, at most %v",
		rounds, c.wrong, c.leaked, c.lost, from, c.parts, median, c.starts[len(c.starts)-1])
	if c.wrong+c.leaked+c.lost > 0 || median > 2*time.Second || from == 0 {
		t.Error("not as it should be")
	}
}

func (c *killCounts) afterKill(t *testing.T, dir string, round, from int) {
	begun := time.Now()
	lib := killLibrary()
	d, tier := killTier(t, dir, lib)
	durable := killDurable(t, dir)
	<-d.Loaded()
	<-durable.Loaded()
	c.starts = append(c.starts, time.Since(begun))
	defer d.Close()
	defer durable.Close()
	for _, store := range []string{"cache", "durable"} {
		left, _ := files(t, filepath.Join(dir, store, "staging"))
		aside, _ := files(t, filepath.Join(dir, store, "damaged"))
		parts, _ := files(t, filepath.Join(dir, store, "partial"))
		c.leaked += len(left) + len(aside) + max(0, len(parts)-2*64)
		for _, p := range parts { // bytes and log belong together
			base := strings.TrimSuffix(strings.TrimSuffix(p, ".data"), ".log")
			for _, other := range []string{base + ".data", base + ".log"} {
				if _, err := os.Stat(other); err != nil {
					c.leaked++
					t.Errorf("round %d: %s alone", round, p)
				}
			}
		}
		c.parts += len(parts) / 2
	}
	if used := d.Bytes(); used > killLimit {
		t.Errorf("round %d: %d bytes are kept", round, used)
	}
	for n := range from {
		data := killBlob(n)
		if got, err := readErr(durable, want(data, 0, -1)); err != nil || !bytes.Equal(got, data) {
			c.lost++
			t.Errorf("round %d: acknowledged blob %d: %v", round, n, err)
		}
	}
	for _, w := range lib.wants {
		// What is here is right as it is, and with what is behind all is.
		for _, src := range []registry.Source{d, tier} {
			got, err := readErr(src, w)
			if src == registry.Source(d) && errors.Is(err, registry.ErrNotFound) {
				continue
			}
			if err != nil || !bytes.Equal(got, lib.blobs[w.Digest]) {
				c.wrong++
				t.Errorf("round %d: %s: %v", round, w.Digest, err)
			}
		}
	}
	if found, err := durable.Verify(context.Background(), 0, nil); err != nil || len(found.Damaged) > 0 {
		c.wrong++
		t.Errorf("round %d: the durable store: %+v, %v", round, found, err)
	}
}
