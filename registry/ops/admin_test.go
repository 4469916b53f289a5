package ops_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry/ops"
)

// TestAdmin: state is read freely, work needs the header, and its lines arrive
// while it runs.
func TestAdmin(t *testing.T) {
	next := make(chan bool)
	var rate int64
	srv := httptest.NewServer(ops.Handler(ops.NewMetrics(""), ops.Admin{
		Status: func() any { return map[string]int{"disks": 2} },
		Verify: func(_ context.Context, r int64, report func(any) error) error {
			rate = r
			if err := report(map[string]int{"blobs": 1}); err != nil {
				return err
			}
			<-next
			return errors.New("the disk is gone")
		},
	}, func() error { return nil }))
	defer srv.Close()
	if status, body := get(t, srv.Config.Handler, "/admin/status"); status != 200 || body != "{\"disks\":2}\n" {
		t.Errorf("%d %q", status, body)
	}
	post := func(query, header string) *http.Response {
		req, err := http.NewRequest(http.MethodPost, srv.URL+"/admin/verify"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		if header != "" {
			req.Header.Set(header, "1")
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	if resp := post("", ""); resp.StatusCode != http.StatusForbidden {
		t.Errorf("without the header: %s", resp.Status)
	}
	for _, q := range []string{"?rate=-1", "?rate=fast", "?rate=99999999999999999999"} {
		if resp := post(q, ops.AdminHeader); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", q, resp.Status)
		}
	}
	lines := bufio.NewScanner(post("?rate=5", ops.AdminHeader).Body)
	if !lines.Scan() || lines.Text() != `{"blobs":1}` || rate != 5 {
		t.Errorf("first line %q at rate %d", lines.Text(), rate)
	}
	close(next)
	if !lines.Scan() || !strings.Contains(lines.Text(), "the disk is gone") {
		t.Errorf("last line %q", lines.Text())
	}
	plain := httptest.NewServer(ops.Handler(ops.NewMetrics(""), ops.Admin{}, func() error { return nil }))
	defer plain.Close()
	if status, _ := get(t, plain.Config.Handler, "/admin/status"); status != 404 {
		t.Errorf("what is not offered: %d", status)
	}
}

// TestAWebPageIsNotLocalhost: a page whose own name leads to this machine is
// told nothing, whatever headers it sends.
func TestAWebPageIsNotLocalhost(t *testing.T) {
	srv := httptest.NewServer(ops.Handler(ops.NewMetrics(""), ops.Admin{
		Status: func() any { return "secret" },
		Verify: func(context.Context, int64, func(any) error) error { t.Error("it works for a web page"); return nil },
	}, func() error { return nil }))
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	for host, want := range map[string]int{"127.0.0.1:" + port: 200, "localhost": 200, "LocalHost:" + port: 200, "weir.localhost": 200, "[::1]:" + port: 200, "::1": 200,
		"evil.example:" + port: 421, "evil.example": 421, "localhost.evil.example": 421, "notlocalhost": 421, "127.0.0.1.evil.example": 421, "localhost.": 421} {
		for method, path := range map[string]string{"GET": "/admin/status", "POST": "/admin/verify"} {
			if method == "POST" && want == 200 {
				continue
			}
			req, err := http.NewRequest(method, srv.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			req.Header.Set(ops.AdminHeader, "1")
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if resp.Body.Close(); resp.StatusCode != want {
				t.Errorf("%s %s to %q: %s", method, path, host, resp.Status)
			}
		}
	}
}
