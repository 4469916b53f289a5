package npmlab

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// sigstore is where npm expects the Sigstore repository.
const sigstore = "tuf-repo-cdn.sigstore.dev"

// A TUF is a Sigstore repository (The Update Framework) that knows no keys of
// any registry. Before npm verifies signatures it insists on refreshing this
// repository, and only when that has worked and named no keys for the
// registry does it ask the registry itself. So a test without the internet
// gives npm a repository of its own, signed by a key of its own: [TUF.Seed]
// puts the root of trust where npm's cache has it, and npm reaches the rest
// through a proxy that lets it reach nothing else.
type TUF struct {
	// Proxy is the URL of the proxy, for HTTPS_PROXY.
	Proxy string

	files    map[string][]byte // by path on the Sigstore host
	ca       []byte            // PEM
	cert     tls.Certificate
	listener net.Listener
}

// StartTUF starts the repository and its proxy. The caller closes it.
func StartTUF() (*TUF, error) {
	t := &TUF{}
	if err := t.certify(); err != nil {
		return nil, err
	}
	if err := t.publish(); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t.listener, t.Proxy = l, "http://"+l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go t.tunnel(c)
		}
	}()
	return t, nil
}

// Close stops taking connections.
func (t *TUF) Close() { t.listener.Close() }

// Seed puts the root of trust into an npm cache directory, and writes the
// proxy's certificate authority to the file ca, for NODE_EXTRA_CA_CERTS.
func (t *TUF) Seed(cache, ca string) error {
	dir := filepath.Join(cache, "_tuf", sigstore)
	if err := os.MkdirAll(filepath.Join(dir, "targets"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "root.json"), t.files["/1.root.json"], 0o644); err != nil {
		return err
	}
	return os.WriteFile(ca, t.ca, 0o644)
}

func (t *TUF) certify() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "weir conformance"},
		DNSNames: []string{sigstore}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	t.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	t.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return nil
}

// publish writes and signs the four documents of an empty repository.
func (t *TUF) publish() error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	const id = "lab"
	type object = map[string]any
	role := object{"keyids": []string{id}, "threshold": 1}
	documents := map[string]object{
		"/1.root.json": {"_type": "root", "consistent_snapshot": true,
			"keys":  object{id: object{"keytype": "ed25519", "scheme": "ed25519", "keyval": object{"public": hex.EncodeToString(public)}}},
			"roles": object{"root": role, "timestamp": role, "snapshot": role, "targets": role}},
		"/timestamp.json":  {"_type": "timestamp", "meta": object{"snapshot.json": object{"version": 1}}},
		"/1.snapshot.json": {"_type": "snapshot", "meta": object{"targets.json": object{"version": 1}}},
		"/1.targets.json":  {"_type": "targets", "targets": object{}},
	}
	t.files = map[string][]byte{}
	for path, signed := range documents {
		signed["spec_version"], signed["version"] = "1.0.31", 1
		signed["expires"] = time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339)
		// encoding/json sorts keys and adds no spaces, and there is nothing
		// here that it would escape: that is TUF's canonical form.
		text, err := json.Marshal(signed)
		if err != nil {
			return err
		}
		sig := hex.EncodeToString(ed25519.Sign(private, text))
		if t.files[path], err = json.Marshal(object{"signed": signed, "signatures": []object{{"keyid": id, "sig": sig}}}); err != nil {
			return err
		}
	}
	return nil
}

// tunnel answers one CONNECT: to the Sigstore host with the repository, to
// any other with a refusal.
func (t *TUF) tunnel(c net.Conn) {
	defer c.Close()
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	if req.Method != http.MethodConnect || req.Host != sigstore+":443" {
		c.Write([]byte("HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"))
		return
	}
	c.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{t.cert}})
	defer s.Close()
	br := bufio.NewReader(s)
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		resp := &http.Response{StatusCode: http.StatusNotFound, ProtoMajor: 1, ProtoMinor: 1, Request: req, Body: http.NoBody}
		if doc, ok := t.files[req.URL.Path]; ok {
			resp.StatusCode, resp.ContentLength = http.StatusOK, int64(len(doc))
			resp.Body = io.NopCloser(bytes.NewReader(doc))
		}
		if resp.Write(s) != nil {
			return
		}
	}
}
