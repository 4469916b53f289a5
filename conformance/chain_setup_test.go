package conformance_test

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/wan"
)

// What a chain of nodes must show. Ratios are to what was measured in the same
// run.
const (
	// chainBytes is how many times its size a blob may cost behind, whatever
	// happens: many clients at once, or connections that are reset.
	chainBytes = 1.02
	// chainLast is how much longer the last of many clients that ask at once
	// may wait for a cold blob than one who asks alone.
	chainLast = 1.3
	// chainSlack is how much longer a median time to first byte may be than
	// the round trips that have to be crossed, each once.
	chainSlack = 5 * time.Millisecond
	// chainBusy is that among other tests, on a machine that is busy with them:
	// less than the shortest round trip between nodes, so one too many shows.
	chainBusy = 25 * time.Millisecond
	// chainSpeedup is how many times faster than a single stream a large blob
	// must come over a line that limits each connection.
	chainSpeedup = 4.0
	// chainFailures is how many requests may fail where there is another way.
	chainFailures = 0
	// chainHeaders is how long any client may wait for an answer to begin.
	chainHeaders = 25 * time.Second
)

// chainLong reports whether the scenarios are to be run in full size. The
// small ones are for every day, and show the same.
func chainLong() bool { return os.Getenv("WEIR_SOAK") != "" }

// either is short or, with WEIR_SOAK, long.
func either[T any](short, long T) T {
	if chainLong() {
		return long
	}
	return short
}

// chainSeries is how often something may be measured until it is within its
// bound: among other tests the processors are not always free. In full size it
// is measured once.
func chainSeries() int { return either(3, 1) }

// chainRepo is the repository of all scenarios' images.
const chainRepo = "library/chain"

func chainBlob(door string, b wan.Blob) wan.Want {
	return wan.Want{URL: door + wan.BlobPath(chainRepo, b), Blob: b}
}

func chainTag(door, tag string, m wan.Blob) wan.Want {
	return wan.Want{URL: door + wan.ManifestPath(chainRepo, tag), Blob: m}
}

// chainPull pulls all at once, before anything is measured.
func chainPull(t *testing.T, c *wan.Client, wants ...wan.Want) {
	t.Helper()
	var all sync.WaitGroup
	for _, w := range wants {
		all.Go(func() {
			if a := c.Get(t.Context(), w); a.Fault != wan.OK {
				t.Errorf("to begin with, GET %s: %s: %v", w.URL, a.Fault, a.Err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func chainRatio(v float64) string { return fmt.Sprintf("%.3f", v) }
