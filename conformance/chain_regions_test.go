package conformance_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/wan"
)

// TestChainRegions: what one region has pulled through, a new region fills from
// the bucket and not from the upstream; a bucket that dies costs neither of them
// an answer; and what an upstream's configuration says is not to be kept is not
// in it.
func TestChainRegions(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "weir-blobs"), 0o700); err != nil {
		t.Fatal(err)
	}
	addr := lab.FreeAddr(t)
	server := lab.Start(t, lab.Command{Path: lab.Tool(t, "versitygw"), Args: []string{"--access", "weir", "--secret", "not-secret",
		"--port", addr, "--keep-alive", "--quiet", "posix", dir}})
	lab.Eventually(t, 10*time.Second, "the S3 server listens", func() error {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		return c.Close()
	})
	for k, v := range map[string]string{"AWS_ACCESS_KEY_ID": "weir", "AWS_SECRET_ACCESS_KEY": "not-secret", "AWS_CONFIG_FILE": "/dev/null",
		"AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true"} {
		t.Setenv(k, v)
	}
	u := wan.StartUpstream(t)
	region := func(more string) *wan.Node {
		return wan.Start(t, u, wan.Plan{Edges: 1, Store: "s3://weir-blobs/a?region=us-east-1&endpoint=http://" + addr, More: more}).Edges[0]
	}
	client := wan.NewClient(t, 30*time.Second)
	layers := []wan.Blob{u.Blob(300_000, "small"), u.Blob(80<<20, "large")}
	m := u.Image(chainRepo, "1", layers...)
	pull := func(n *wan.Node) {
		t.Helper()
		client.Must(t, chainTag(n.Door, "1", m))
		for _, l := range layers {
			client.Must(t, chainBlob(n.Door, l))
		}
	}
	first := region("")
	pull(first)
	lab.Eventually(t, 20*time.Second, "all is in the bucket", func() error {
		if n := first.Metric("weir_events_total", `event="kept"`); n < 3 { // two layers and the manifest
			return fmt.Errorf("%v blobs are", n)
		}
		return nil
	})
	bytes := func() (n int64) {
		for _, l := range layers {
			n += u.Read(l.Digest).Bytes
		}
		return n
	}
	before := bytes()
	second := region("")
	pull(second)
	if n := bytes() - before; n != 0 {
		t.Errorf("the second region read %d bytes of blobs upstream", n)
	}
	server.Kill9()
	third := region("")
	pull(third)
	pull(first)
	if n := bytes() - before; n != before {
		t.Errorf("with the bucket dead a new region read %d bytes upstream, want %d", n, before)
	}
	if third.Metric("weir_events_total", `event="origin unavailable"`) < 1 {
		t.Error("that the bucket is dead is not counted")
	}
}
