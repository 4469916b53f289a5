package ops_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/ops"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(body)
}

func TestMetrics(t *testing.T) {
	m := ops.NewMetrics("1.2.3")
	m.TierBytes("memory", func() int64 { return 7 })
	m.TierBytes("disk", func() int64 { return 1 << 40 })
	m.Node("a:1", func() bool { return true })
	m.Node("b:1", func() bool { return false })
	m.Request("oci", 200, 3*time.Millisecond, 100, registry.Via{Detail: "disk"})
	m.Request("oci", 200, time.Second, 1, registry.Via{Fwd: "miss", Detail: "upstream"})
	m.Request("npm", 404, time.Second, 0, registry.Via{})
	m.TierHit("disk")
	m.Fill(1)
	m.Fill(1)
	m.Fill(-1)
	m.Collapsed()
	m.Upstream("docker.io", 200, time.Millisecond)
	m.Upstream("docker.io", 0, time.Second)
	status, body := get(t, ops.Handler(m, ops.Admin{}, func() error { return nil }), "/metrics")
	if status != 200 {
		t.Fatalf("status %d", status)
	}
	for _, line := range []string{
		`weir_requests_total{cache="hit",code="200",space="oci"} 1`,
		`weir_requests_total{cache="miss",code="200",space="oci"} 1`,
		`weir_requests_total{cache="",code="404",space="npm"} 1`,
		`weir_request_seconds_count{space="oci"} 2`,
		`weir_request_seconds_bucket{space="oci",le="0.005"} 1`,
		`weir_response_bytes_total{space="oci"} 101`,
		`weir_tier_hits_total{tier="disk"} 1`,
		`weir_tier_bytes{tier="memory"} 7`,
		`weir_tier_bytes{tier="disk"} 1.099511627776e+12`,
		`weir_fills_active 1`,
		`weir_collapsed_total 1`,
		`weir_upstream_requests_total{code="200",upstream="docker.io"} 1`,
		`weir_upstream_requests_total{code="0",upstream="docker.io"} 1`,
		`weir_upstream_seconds_count{upstream="docker.io"} 1`,
		`weir_node_up{node="a:1"} 1`,
		`weir_node_up{node="b:1"} 0`,
		`weir_build_info{version="1.2.3"} 1`,
	} {
		if !strings.Contains(body, "\n"+line+"\n") {
			t.Errorf("no line %q", line)
		}
	}
	for _, name := range []string{"go_goroutines", "process_open_fds"} {
		if !strings.Contains(body, "\n"+name+" ") {
			t.Errorf("no metric %s", name)
		}
	}
}

func TestTwoInOneProcess(t *testing.T) {
	a, b := ops.NewMetrics("a"), ops.NewMetrics("b")
	a.Collapsed()
	if _, body := get(t, ops.Handler(b, ops.Admin{}, func() error { return nil }), "/metrics"); !strings.Contains(body, "\nweir_collapsed_total 0\n") {
		t.Error("two Metrics share a counter")
	}
}

func TestHealth(t *testing.T) {
	var reason error
	h := ops.Handler(ops.NewMetrics(""), ops.Admin{}, func() error { return reason })
	if status, _ := get(t, h, "/readyz"); status != 200 {
		t.Errorf("ready: %d", status)
	}
	reason = errors.New("stopping")
	if status, body := get(t, h, "/readyz"); status != 503 || body != "stopping\n" {
		t.Errorf("not ready: %d %q", status, body)
	}
	if status, _ := get(t, h, "/healthz"); status != 200 {
		t.Errorf("health: %d", status)
	}
	if status, _ := get(t, h, "/other"); status != 404 {
		t.Errorf("another path: %d", status)
	}
}
