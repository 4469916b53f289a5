// Package ops is what operators see of a node: its metrics and its health. It
// is told what happens and knows nothing of how anything works inside.
package ops

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weir-registry/weir/registry"
)

// Metrics counts what happens, for Prometheus. [NewMetrics] makes it; each has
// a registry of its own and shares nothing with others in the process.
type Metrics struct {
	gather    *prometheus.Registry
	requests  *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	sent      *prometheus.CounterVec
	hits      *prometheus.CounterVec
	fills     prometheus.Gauge
	collapsed prometheus.Counter
	asked     *prometheus.CounterVec
	answers   *prometheus.HistogramVec
	events    *prometheus.CounterVec
	open      *upstreams
}

var _ registry.Watcher = (*Metrics)(nil)

// NewMetrics returns Metrics that have counted nothing yet. version is shown
// as a label of weir_build_info.
func NewMetrics(version string) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		gather:   prometheus.NewRegistry(),
		open:     newUpstreams(),
		requests: counter("weir_requests_total", "Requests answered, by protocol, status and whether anything behind had to be asked (hit, miss, stale).", "space", "code", "cache"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weir_request_seconds",
			Help:    "Time from a request's header to its answer's last byte.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}}, []string{"space"}),
		sent:      counter("weir_response_bytes_total", "Body bytes sent to clients.", "space"),
		hits:      counter("weir_tier_hits_total", "Blobs found in a tier.", "tier"),
		fills:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "weir_fills_active", Help: "Fills from behind that are running."}),
		collapsed: prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_collapsed_total", Help: "Readers that joined a running fill or question."}),
		asked:     counter("weir_upstream_requests_total", "Answers of upstreams, by status; code 0 is no answer.", "upstream", "code"),
		answers: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weir_upstream_seconds",
			Help:    "Time until an upstream's response header.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"upstream"}),
		events: counter("weir_events_total", "What an operator may want to know of: a breaker that opened, a disk that failed, a peer passed over.", "event", "subject"),
	}
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weir_build_info", Help: "Always 1; says which weir this is."}, []string{"version"})
	info.WithLabelValues(version).Set(1)
	m.gather.MustRegister(m.requests, m.seconds, m.sent, m.hits, m.fills, m.collapsed, m.asked, m.answers, m.events, m.open, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// TierBytes makes weir_tier_bytes{tier} what held returns, asked for at every
// scrape. It is called once for each tier.
func (m *Metrics) TierBytes(tier string, held func() int64) {
	m.gather.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weir_tier_bytes",
		Help: "Bytes that a tier holds.", ConstLabels: prometheus.Labels{"tier": tier}},
		func() float64 { return float64(held()) }))
}

// Node makes weir_node_up{node} 1 while up says that the node answers, and else
// 0. It is called once for each node.
func (m *Metrics) Node(node string, up func() bool) {
	m.gather.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weir_node_up",
		Help: "1 while another node answers, as far as this one knows.", ConstLabels: prometheus.Labels{"node": node}},
		func() float64 { return oneIf(up()) }))
}

// Entitlements makes weir_entitlement_version and weir_entitlement_lag_seconds
// what standing returns, asked for at every scrape: the version of this node's
// copy, and for how long the node with the database has not confirmed it. It is
// called once.
func (m *Metrics) Entitlements(standing func() (version uint64, lag time.Duration)) {
	gauge := func(name, help string, value func() float64) {
		m.gather.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("weir_entitlement_version", "Version of this node's copy of who may do what.", func() float64 {
		version, _ := standing()
		return float64(version)
	})
	gauge("weir_entitlement_lag_seconds", "Time since the node with the metadata database confirmed this node's copy.", func() float64 {
		_, lag := standing()
		return lag.Seconds()
	})
}

// Disk makes weir_disk_bytes, weir_disk_limit_bytes and weir_disk_up, with the
// label disk; bytes and works are asked at every scrape. It is called once for
// each disk.
func (m *Metrics) Disk(disk string, limit int64, bytes func() int64, works func() bool) {
	gauge := func(name, help string, value func() float64) {
		m.gather.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: prometheus.Labels{"disk": disk}}, value))
	}
	gauge("weir_disk_bytes", "Bytes that blobs take on a disk.", func() float64 { return float64(bytes()) })
	gauge("weir_disk_limit_bytes", "Bytes that blobs may take on a disk.", func() float64 { return float64(limit) })
	gauge("weir_disk_up", "Whether a disk can be read and written and has room.", func() float64 { return oneIf(works()) })
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Request implements registry.Meter.
func (m *Metrics) Request(space string, status int, took time.Duration, bytes int64, via registry.Via) {
	cache := via.Fwd
	if via.Hit() {
		cache = "hit"
		if via.Detail == "" && via.Stale == 0 {
			cache = "" // an answer that came from no cache: an error, a ping
		}
	}
	m.requests.WithLabelValues(space, strconv.Itoa(status), cache).Inc()
	m.seconds.WithLabelValues(space).Observe(took.Seconds())
	if bytes > 0 {
		m.sent.WithLabelValues(space).Add(float64(bytes))
	}
}

// TierHit implements registry.Meter.
func (m *Metrics) TierHit(tier string) { m.hits.WithLabelValues(tier).Inc() }

// Fill implements registry.Meter.
func (m *Metrics) Fill(delta int) { m.fills.Add(float64(delta)) }

// Collapsed implements registry.Meter.
func (m *Metrics) Collapsed() { m.collapsed.Inc() }

// Upstream implements registry.Meter.
func (m *Metrics) Upstream(upstream string, code int, took time.Duration) {
	m.asked.WithLabelValues(upstream, strconv.Itoa(code)).Inc()
	if code != 0 {
		m.answers.WithLabelValues(upstream).Observe(took.Seconds())
	}
}

// Event implements registry.Meter.
func (m *Metrics) Event(what, who string) { m.events.WithLabelValues(what, who).Inc() }
