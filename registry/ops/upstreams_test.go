package ops_test

import (
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry/ops"
)

// TestUpstreams: what is asked for at a scrape, and added up for upstreams of
// one name.
func TestUpstreams(t *testing.T) {
	m := ops.NewMetrics("test")
	waiting := 1
	m.WatchUpstream("hub", func() (int, int) { return waiting, 2 })
	m.WatchUpstream("hub", func() (int, int) { return 10, 20 })
	m.WatchUpstream("other", func() (int, int) { return 0, 0 })
	waiting = 5
	_, body := get(t, ops.Handler(m, ops.Admin{}, func() error { return nil }), "/metrics")
	for _, line := range []string{
		`weir_upstream_active{upstream="hub"} 22`, `weir_upstream_active{upstream="other"} 0`,
		`weir_upstream_queue{upstream="hub"} 15`, `weir_upstream_queue{upstream="other"} 0`,
	} {
		if !strings.Contains(body, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}
