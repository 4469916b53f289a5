package conformance_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// TestAccountsWired: what the configuration says of access and of the audit log
// counts in the binary, and that a token is used is noted.
func TestAccountsWired(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	b.Stop()
	b.Configure(strings.NewReplacer("anonymous: [\"pull oci:*\", \"pull oci:docker.io/*\"]", "anonymous: []\n  bearer: 7m\naudit: {allowed: yes}").
		Replace(ociConfig("", "docker.io", b.proxy.URL)))
	b.Start()
	b.pushBlobs(t, "library/wired:1", []byte("wired"))
	b.MustCommand("", "robot", "add", "puller")
	b.MustCommand("", "grant", "add", "puller", "pull oci:docker.io/library/wired")
	var made struct{ ID, Secret string }
	if err := json.Unmarshal([]byte(b.MustCommand("", "token", "create", "puller", "-o", "json")), &made); err != nil {
		t.Fatal(err)
	}
	const manifest = "/v2/library/wired/manifests/1"
	bearer := []string{"Authorization", "Bearer " + made.Secret}
	if a := b.ask(t, "GET", manifest, bearer...); a.status != 200 {
		t.Fatalf("the robot's pull: %d %.200q", a.status, a.body)
	}
	if a := b.ask(t, "GET", manifest); a.status != 401 {
		t.Errorf("anonymous pull: %d", a.status)
	}
	var issued struct {
		Seconds int `json:"expires_in"`
	}
	a := b.ask(t, "GET", "/token?scope=repository:library/wired:pull", bearer...)
	if err := json.Unmarshal(a.body, &issued); err != nil || issued.Seconds < 7*60-5 || issued.Seconds > 7*60 {
		t.Errorf("a short-lived token lasts %d s, %v: %.200q", issued.Seconds, err, a.body)
	}
	lab.Eventually(t, 10*time.Second, "the audit log has what was allowed, denied and changed", func() error {
		log, err := os.ReadFile(filepath.Join(b.Data, "audit.log"))
		if err != nil {
			return err
		}
		for _, want := range []string{`"who":"puller"`, `"who":"anonymous"`, `"who":"admin"`} {
			decision := map[string]string{`"who":"puller"`: "allow", `"who":"anonymous"`: "deny", `"who":"admin"`: "change"}[want]
			if !lineWith(string(log), want, `"decision":"`+decision+`"`) {
				return fmt.Errorf("no line with %s and %s in\n%s", want, decision, log)
			}
		}
		return nil
	})
	lab.Eventually(t, 30*time.Second, "the token's use is noted", func() error {
		var token struct{ Used time.Time }
		out, err := b.Command("", "token", "show", made.ID, "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &token)
		}
		if err == nil && time.Since(token.Used) > time.Hour {
			err = errors.New(out)
		}
		return err
	})
}

// lineWith reports whether a line of a text has all of some parts.
func lineWith(text string, parts ...string) bool {
	for line := range strings.Lines(text) {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			return true
		}
	}
	return false
}
