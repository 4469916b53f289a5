package oci

import (
	"log/slog"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
	"github.com/weir-registry/weir/registry/reply"
)

// TestStrangersLearnNothing: who has no right to a repository cannot tell what is
// here because of others from what is nowhere.
func TestStrangersLearnNothing(t *testing.T) {
	w, theirs, _ := tenants(t)
	m, d := theirs.image(t, "secret", "s", "here")
	if bolt, err := names.Open(t.TempDir()+"/names.db", names.Options{Volatile: true}); err != nil {
		t.Fatal(err)
	} else {
		t.Cleanup(func() { bolt.Close() })
		w.svc.Names = bolt // where a look at what is not there is a look at the disk
	}
	w.get("/v2/theirs/secret/manifests/here", 200, "")
	w.get("/v2/theirs/secret/manifests/"+string(d), 200, "")
	layer := m.Layers[1].Digest
	w.get("/v2/theirs/secret/blobs/"+string(layer), 200, "")
	warden := new(conformance.Warden)
	warden.Revoke(registry.Errorf(registry.ErrDenied, "not for you"), func(c *registry.Call) bool { return c.Agent == "stranger" })
	w.svc.Guard = warden
	quiet := slog.New(slog.DiscardHandler)
	h := reply.Handler(New(Config{Service: w.svc, Upstreams: w.ups, Log: quiet}), reply.Options{Space: Space, Log: quiet})
	none := digest.FromString("nowhere")
	conformance.TestIndistinguishable(t, h, "stranger", []conformance.Secret{
		{Name: "blob", Here: "/v2/theirs/secret/blobs/" + string(layer), Absent: "/v2/theirs/secret/blobs/" + string(none)},
		{Name: "manifest", Here: "/v2/theirs/secret/manifests/" + string(d), Absent: "/v2/theirs/secret/manifests/" + string(none)},
		{Name: "referrers", Here: "/v2/theirs/secret/referrers/" + string(d), Absent: "/v2/theirs/secret/referrers/" + string(none)},
		{Name: "tag", Here: "/v2/theirs/secret/manifests/here", Absent: "/v2/theirs/secret/manifests/none"},
		{Name: "repository", Here: "/v2/theirs/secret/manifests/here", Absent: "/v2/theirs/nowher/manifests/here"},
	})
}

func TestTimingNotices(t *testing.T) { conformance.TimingNotices(t, 50*time.Microsecond) }
