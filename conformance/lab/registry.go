package lab

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A Registry is a real registry (distribution v3) that keeps everything in a
// directory of its own. It has no referrers API and lists referrers by tag.
type Registry struct {
	*Process
	// Addr is its host:port, URL that with "http://" before.
	Addr, URL string
}

// StartRegistry starts an empty registry and waits until it answers.
func StartRegistry(t testing.TB) *Registry {
	t.Helper()
	dir := t.TempDir()
	r := &Registry{Addr: FreeAddr(t)}
	r.URL = "http://" + r.Addr
	config := filepath.Join(dir, "registry.yml")
	text := fmt.Sprintf(`version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
  maintenance: {uploadpurging: {enabled: false}}
http: {addr: %q, draintimeout: 1s}
`, filepath.Join(dir, "data"), r.Addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Process = Start(t, Command{
		Path: Tool(t, "registry"), Args: []string{"serve", config}, Dir: dir,
		Env: []string{"OTEL_TRACES_EXPORTER=none"},
	})
	r.ready(20*time.Second, "answer on "+r.Addr, func() error {
		resp, err := http.Get(r.URL + "/v2/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return r
}
