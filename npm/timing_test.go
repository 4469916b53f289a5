package npm_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/registry"
)

// TestStrangersLearnNothing: who has no right to a package cannot tell whether it,
// or a file of it, is here because of others.
func TestStrangersLearnNothing(t *testing.T) {
	up, url := startFiles(t)
	tarball := []byte("a tarball")
	sri, _ := integrityOf(tarball)
	up.data["/@theirs/here"] = packumentOf("@theirs/here", url+"/@theirs/here/-/here-1.0.0.tgz", sri, "")
	up.data["/@theirs/here/-/here-1.0.0.tgz"] = tarball
	warden := new(conformance.Warden)
	warden.Revoke(registry.Errorf(registry.ErrDenied, "not for you"), func(c *registry.Call) bool { return c.Agent == "stranger" })
	_, handler := isolated(t, warden, npm.Registry{Name: "theirs", URL: url, Packages: []string{"*"}})
	h := handler(slog.New(slog.DiscardHandler))
	for _, target := range []string{"/@theirs/here", "/@theirs/here/-/here-1.0.0.tgz", "/@theirs/here/1.0.0"} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "http://weir.test"+target, nil))
		if rec.Code != 200 {
			t.Fatal(target, rec.Code, rec.Body)
		}
	}
	conformance.TestIndistinguishable(t, h, "stranger", []conformance.Secret{
		{Name: "packument", Here: "/@theirs/here", Absent: "/@theirs/none"},
		{Name: "tarball", Here: "/@theirs/here/-/here-1.0.0.tgz", Absent: "/@theirs/here/-/here-2.0.0.tgz"},
		{Name: "tarball of nothing", Here: "/@theirs/here/-/here-1.0.0.tgz", Absent: "/@theirs/none/-/none-1.0.0.tgz"},
		{Name: "version", Here: "/@theirs/here/1.0.0", Absent: "/@theirs/none/1.0.0"},
	})
}
