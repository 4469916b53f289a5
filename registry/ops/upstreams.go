package ops

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// upstreams collects, at every scrape, how many requests wait for upstreams
// and are open at them. Two protocols may have an upstream of one name: their
// numbers are added up.
type upstreams struct {
	queue, active *prometheus.Desc

	mu     sync.Mutex
	counts map[string][]func() (waiting, active int) // by upstream; guarded by mu
}

var _ prometheus.Collector = (*upstreams)(nil)

func newUpstreams() *upstreams {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"upstream"}, nil)
	}
	return &upstreams{
		queue:  desc("weir_upstream_queue", "Requests that wait to be sent to an upstream."),
		active: desc("weir_upstream_active", "Requests that are open at an upstream."),
		counts: map[string][]func() (waiting, active int){},
	}
}

// Describe implements prometheus.Collector.
func (u *upstreams) Describe(ch chan<- *prometheus.Desc) {
	ch <- u.queue
	ch <- u.active
}

// Collect implements prometheus.Collector.
func (u *upstreams) Collect(ch chan<- prometheus.Metric) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for name, list := range u.counts {
		waiting, active := 0, 0
		for _, counts := range list {
			w, a := counts()
			waiting, active = waiting+w, active+a
		}
		ch <- prometheus.MustNewConstMetric(u.queue, prometheus.GaugeValue, float64(waiting), name)
		ch <- prometheus.MustNewConstMetric(u.active, prometheus.GaugeValue, float64(active), name)
	}
}

// WatchUpstream implements registry.Watcher.
func (m *Metrics) WatchUpstream(upstream string, counts func() (waiting, active int)) {
	m.open.mu.Lock()
	defer m.open.mu.Unlock()
	m.open.counts[upstream] = append(m.open.counts[upstream], counts)
}
