package conformance_test

import (
	"encoding/base64"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
)

// TestOCIAccountsMirror has containerd use weir as a mirror with credentials:
// they are in hosts.toml, as the header that goes with each request. Of a 401
// containerd prints the challenge's error and nothing else, and it goes on
// sending the header with the tokens that it asks for.
func TestOCIAccountsMirror(t *testing.T) {
	t.Parallel()
	a := startAccounts(t, startHub(t), "")
	socket := startContainerdProcess(t)
	pull := func(what, authorization, repo, want string) {
		t.Helper()
		hosts := t.TempDir()
		ociWrite(t, filepath.Join(hosts, "docker.io", "hosts.toml"), fmt.Sprintf(
			"server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  [host.%q.header]\n    authorization = %q\n",
			a.URL, a.URL, a.URL, authorization))
		r := lab.Try(t, pullLimit, lab.Command{Path: lab.Tool(t, "ctr"), Args: []string{"--address", socket,
			"images", "pull", "--hosts-dir", hosts, "--snapshotter", "native", "docker.io/" + repo + ":1"}})
		if (r.Code == 0) != (want == "") || !strings.Contains(r.Stdout+r.Stderr, want) {
			t.Errorf("%s: status %d, %s%s, want %q\n%s", what, r.Code, r.Stdout, r.Stderr, want, a.story())
		}
	}
	good := "Bearer " + a.token("alice").Secret
	pull("an unknown token", "Bearer "+registry.NewTokenText(), "acme/app", "invalid_token")
	pull("a token", good, "acme/app", "")
	pull("a password", "Basic "+base64.StdEncoding.EncodeToString([]byte("bob:"+bobsPassword)), "bob/app", "")
	pull("another's image", good, "bob/other", "403 Forbidden")
}
