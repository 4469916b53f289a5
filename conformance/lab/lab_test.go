package lab_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// behind is an upstream of one body.
func behind(t *testing.T, body []byte) *lab.Proxy {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "body", time.Time{}, bytes.NewReader(body))
	}))
	t.Cleanup(s.Close)
	return lab.StartProxy(t, s.URL)
}

func get(t *testing.T, url string) (int, []byte, error) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

func TestProxyCounts(t *testing.T) {
	body := lab.Noise("counts", 300_000)
	p := behind(t, body)
	for range 2 {
		if status, got, err := get(t, p.URL+"/a/b"); status != 200 || !bytes.Equal(got, body) || err != nil {
			t.Fatalf("got %d, %d bytes, %v", status, len(got), err)
		}
	}
	if n, b := p.Count("GET", "/a/"), p.Bytes("GET", "/a/"); n != 2 || b != 600_000 {
		t.Errorf("counted %d requests and %d bytes", n, b)
	}
	if n := p.Count("HEAD", ""); n != 0 {
		t.Errorf("counted %d HEADs", n)
	}
	p.Reset()
	if n := p.Count("", ""); n != 0 {
		t.Errorf("counted %d after Reset", n)
	}
}

func TestProxyBreaksAnswers(t *testing.T) {
	body := lab.Noise("breaks", 300_000)
	p := behind(t, body)
	const at = 100_001

	p.Inject(lab.Fault{Corrupt: true, After: at})
	_, got, err := get(t, p.URL)
	if err != nil || len(got) != len(body) || got[at] == body[at] || !bytes.Equal(got[at+1:], body[at+1:]) {
		t.Errorf("corrupt: %d bytes, %v", len(got), err)
	}
	p.Inject(lab.Fault{Truncate: true, After: at})
	if _, got, err = get(t, p.URL); !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Equal(got, body[:at]) {
		t.Errorf("truncate: %d bytes, %v", len(got), err)
	}
	p.Inject(lab.Fault{Short: true, After: at})
	if _, got, err = get(t, p.URL); err != nil || !bytes.Equal(got, body[:at]) {
		t.Errorf("short: %d bytes, %v", len(got), err)
	}
	p.Inject(lab.Fault{Status: 429, Header: http.Header{"Retry-After": {"7"}}, Times: 1})
	if status, _, _ := get(t, p.URL); status != 429 {
		t.Errorf("status: %d", status)
	}
	if status, _, _ := get(t, p.URL); status != 200 {
		t.Errorf("the fault outlived its times: %d", status)
	}
	p.Inject(lab.Fault{Method: "HEAD", Status: 500}, lab.Fault{Path: "/x/", Status: 503})
	if status, _, _ := get(t, p.URL+"/x/y"); status != 503 {
		t.Errorf("the second fault's status: %d", status)
	}
}

func TestProxyHangsStallsAndSlows(t *testing.T) {
	body := lab.Noise("slow", 300_000)
	p := behind(t, body)
	client := &http.Client{Timeout: 200 * time.Millisecond}
	p.Inject(lab.Fault{Hang: true})
	if _, err := client.Get(p.URL); err == nil {
		t.Error("hang: there was an answer")
	}
	p.Inject(lab.Fault{Stall: true, After: 1000})
	resp, err := client.Get(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err == nil || len(got) != 1000 {
		t.Errorf("stall: %d bytes, %v", len(got), err)
	}
	p.Inject(lab.Fault{Rate: 600_000, Delay: 50 * time.Millisecond})
	start := time.Now()
	if _, _, err := get(t, p.URL); err != nil || time.Since(start) < 350*time.Millisecond {
		t.Errorf("300 kB at 600 kB/s came after %v, %v", time.Since(start), err)
	}
}

func TestProxyDownAndUp(t *testing.T) {
	p := behind(t, []byte("here"))
	p.Down()
	if _, _, err := get(t, p.URL); err == nil {
		t.Error("answered while down")
	}
	p.Up()
	if _, got, err := get(t, p.URL); err != nil || string(got) != "here" {
		t.Errorf("after Up: %q, %v", got, err)
	}
}

func TestRegistryHoldsWhatIsPushed(t *testing.T) {
	r := lab.StartRegistry(t)
	index, files := lab.MakeIndex(t, lab.OCI(), "lab", 10_000)
	digest := lab.Push(t, r.Addr, "library/thing:1", index)
	status, got, err := get(t, r.URL+"/v2/library/thing/manifests/"+digest.String())
	if status != 200 || err != nil || !bytes.Contains(got, []byte("arm64")) {
		t.Errorf("got %d, %s, %v", status, got, err)
	}
	if files["amd64"]["etc/weir/arch"] != "amd64 of lab" {
		t.Errorf("files: %v", files["amd64"]["etc/weir/arch"])
	}
}

func TestProcesses(t *testing.T) {
	p := lab.Start(t, lab.Command{Path: "/bin/sh", Args: []string{"-c", "echo up; exec sleep 60"}})
	lab.Eventually(t, 5*time.Second, "the first line", func() error {
		if p.Log() != "up\n" {
			return errors.New(p.Log())
		}
		return nil
	})
	p.Stop()
	if p.Running() || p.ExitCode() != -1 {
		t.Errorf("running %v, status %d", p.Running(), p.ExitCode())
	}
	r := lab.Try(t, 10*time.Second, lab.Command{Path: "/bin/sh", Args: []string{"-c", "pwd; echo no >&2; exit 3"}})
	if r.Code != 3 || r.Stderr != "no\n" || !strings.HasPrefix(r.Stdout, os.TempDir()) {
		t.Errorf("got %+v", r)
	}
}
