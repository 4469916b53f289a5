package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// given writes certificates as somebody else would.
func given(t *testing.T, dir string, a *authority, name string, hosts ...string) Files {
	t.Helper()
	f := Files{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem")}
	key, _, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	keyText, err := keyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.issue(name, hosts, key.Public(), newClock().now())
	if err != nil {
		t.Fatal(err)
	}
	put(t, f.Cert, certificatePEM(cert.Raw))
	put(t, f.Key, keyText)
	put(t, f.CA, "Some words before it.\n"+a.record.CA)
	return f
}

// put replaces a file as a careful program does.
func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestCertificatesFromElsewhere(t *testing.T) {
	clock := newClock()
	ca, err := newAuthority("somebody", clock.now())
	if err != nil {
		t.Fatal(err)
	}
	other, err := newAuthority("other", clock.now())
	if err != nil {
		t.Fatal(err)
	}
	shieldDir, edgeDir := t.TempDir(), t.TempDir()
	shieldFiles := given(t, shieldDir, ca, "shield", "127.0.0.1")
	shield := listen(t, clock, func(o *Options) { o.Files = shieldFiles })
	edge := newNode(t, clock, func(o *Options) { o.Files = given(t, edgeDir, ca, "edge1") })
	edge.wantHello(t, shield, "edge1")
	first, err := tls.LoadX509KeyPair(filepath.Join(edgeDir, "cert.pem"), filepath.Join(edgeDir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(shield.dir); err == nil {
		t.Error("files were made")
	}
	// None of the commands is of use.
	_, invited := shield.Invite(InviteOptions{Name: "x", Address: shield.url()})
	_, revoked := shield.Revoke("edge1", true)
	_, listed := shield.List()
	for _, err := range []error{invited, revoked, listed} {
		if !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), "this node's certificates come from elsewhere") {
			t.Error(err)
		}
	}
	for _, path := range []string{joinPath, renewPath} {
		if code, text, err := fetch(edge.Transport(), "POST", shield.url()+path, strings.NewReader("{}")); err != nil || code != 403 || !strings.Contains(text, "come from elsewhere") {
			t.Error(path, code, text, err)
		}
	}
	// The edge is given others, which the shield does not know; then the shield
	// is, too: neither is started again.
	given(t, edgeDir, other, "edge2")
	if _, _, err := edge.get(t, nil, shield.url()); err == nil || !strings.Contains(err.Error(), "an authority that this node has not joined") {
		t.Fatal(err)
	}
	given(t, shieldDir, other, "shield", "127.0.0.1")
	edge.wantHello(t, shield, "edge2")
	// What cannot be used is not: the old ones stay, and the log says so once.
	for _, path := range []string{shieldFiles.Cert, shieldFiles.Key, shieldFiles.CA} {
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		put(t, path, "nonsense")
		edge.wantHello(t, shield, "edge2")
		edge.wantHello(t, shield, "edge2")
		if !strings.Contains(shield.log.String(), "changed certificates cannot be used; the old ones stay") || !strings.Contains(shield.log.String(), path) {
			t.Errorf("%s: %s", path, shield.log)
		}
		if _, err := Open(Options{Files: shieldFiles}); !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
		put(t, path, string(old))
	}
	// A key that is another certificate's is none either.
	stray := t.TempDir()
	if _, err := Open(Options{Files: Files{Cert: shieldFiles.Cert, Key: given(t, stray, other, "x").Key, CA: shieldFiles.CA}}); err == nil {
		t.Error("a key that does not belong was taken")
	}
	// Nor does an authority count that did, for those it had vouched for.
	for _, stranger := range []tls.Certificate{made(t, ca, func(*x509.Certificate) {}), first} {
		if code, _, err := fetch(as(stranger), "GET", shield.url(), nil); err == nil {
			t.Errorf("%d for the authority that counts no more", code)
		}
	}
	clock.add(31 * 24 * time.Hour)
	pair, err := tls.LoadX509KeyPair(filepath.Join(edgeDir, "cert.pem"), filepath.Join(edgeDir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if code, text, err := fetch(as(pair), "GET", shield.url(), nil); err != nil || code != http.StatusForbidden || !strings.Contains(text, "expired") {
		t.Error(code, text, err)
	}
}
