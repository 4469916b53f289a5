package trust

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// as is a transport of an attacker, who shows what he likes and believes
// anyone.
func as(certs ...tls.Certificate) *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, //nolint
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(certs) == 0 {
				return &tls.Certificate{}, nil
			}
			return &certs[0], nil
		}}}
}

// made is a certificate for a new key, signed by an authority as its holder
// likes.
func made(t *testing.T, a *authority, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, _, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	at := newClock().now()
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "edge1"}, NotBefore: at.Add(-time.Hour), NotAfter: at.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestWhoIsNotAdmittedGetsNothing(t *testing.T) {
	shield := listen(t, newClock(), nil)
	own := shield.current().own
	now := shield.clock.now()
	other, err := newAuthority("other", now)
	if err != nil {
		t.Fatal(err)
	}
	selfMade, err := newAuthority("edge1", now)
	if err != nil {
		t.Fatal(err)
	}
	// An authority with the very name of the right one.
	twin := *other
	twinTemplate := *own.cert
	twinTemplate.PublicKey, twinTemplate.Raw = nil, nil
	der, err := x509.CreateCertificate(rand.Reader, &twinTemplate, &twinTemplate, other.key.Public(), other.key)
	if err != nil {
		t.Fatal(err)
	}
	if twin.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	plain := func(*x509.Certificate) {}
	edge := joined(t, shield, "edge1")
	proper := edge.current().joined[0].cert
	if code, text, err := fetch(as(*proper), "GET", shield.url(), nil); err != nil || code != 200 || text != "hello edge1" {
		t.Fatalf("the control: %d %q %v", code, text, err)
	}
	// As intermediate authority: who has a certificate signs another with it.
	under := &authority{cert: proper.Leaf, key: proper.PrivateKey.(*ecdsa.PrivateKey)}
	byEdge := made(t, under, plain)
	byEdge.Certificate = append(byEdge.Certificate, proper.Certificate[0])
	for what, c := range map[string]struct {
		tr     *http.Transport
		reason string
		text   string // of a 403; "": the handshake fails
	}{
		"none":           {as(), noCertificate, "a node must show a certificate here"},
		"other CA":       {as(made(t, other, plain)), otherCA, ""},
		"twin CA":        {as(made(t, &twin, plain)), otherCA, ""},
		"self-signed":    {as(tls.Certificate{Certificate: [][]byte{selfMade.cert.Raw}, PrivateKey: selfMade.key}), otherCA, ""},
		"signed by edge": {as(byEdge), otherCA, ""},
		"server only": {as(made(t, own, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })),
			otherCA, ""},
		"expired":                {as(made(t, own, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })), expired, "the certificate expired at 2031-05-06 07:08:08 UTC"},
		"not yet":                {as(made(t, own, func(c *x509.Certificate) { c.NotBefore = now.Add(90 * time.Second) })), notYetValid, "which is 1m30s behind"},
		"expired and of another": {as(made(t, other, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })), otherCA, ""},
	} {
		for _, ask := range [][2]string{{"GET", "/"}, {"GET", "/v2/x"}, {"GET", revokedPath}, {"POST", renewPath}, {"GET", joinPath + "/"}, {"POST", "/weir/v1//join"}, {"POST", "//weir/v1/join"}} {
			before := shield.meter.count("node refused", c.reason)
			served := shield.served()
			code, text, err := fetch(c.tr, ask[0], shield.url()+ask[1], nil)
			if c.text == "" && err == nil || c.text != "" && (err != nil || code != 403 || !strings.Contains(text, c.text) || strings.Contains(text, "\n")) {
				t.Errorf("%s, %v: %d %q %v", what, ask, code, text, err)
			}
			if served != shield.served() || shield.meter.count("node refused", c.reason) <= before {
				t.Errorf("%s, %v: served, or not counted", what, ask)
			}
		}
	}
	if !strings.Contains(shield.log.String(), `level=WARN msg="node refused" reason="another authority"`) {
		t.Error(shield.log)
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS11} {
		tr := as(*proper)
		tr.TLSClientConfig.MaxVersion, tr.TLSClientConfig.MinVersion = version, version
		if _, _, err := fetch(tr, "GET", shield.url(), nil); err == nil {
			t.Errorf("TLS %x was spoken", version)
		}
	}
	two := as(*proper)
	two.ForceAttemptHTTP2 = true
	two.TLSClientConfig.NextProtos = []string{"h2", "http/1.1"}
	if code, _, err := fetch(two, "GET", shield.url(), nil); err != nil || code != 200 {
		t.Error(err)
	}
	conn, err := tls.Dial("tcp", shield.addr, two.TLSClientConfig)
	if err != nil || conn.ConnectionState().NegotiatedProtocol != "http/1.1" {
		t.Errorf("%v", err)
	}
	conn.Close()
}

func TestHandlerWithoutTLS(t *testing.T) {
	n := newNode(t, newClock(), func(o *Options) { o.Listen = true })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: n.Handler(http.NotFoundHandler())}
	go srv.Serve(l)
	defer srv.Close()
	for _, path := range []string{"/", joinPath} {
		if code, _, err := fetch(&http.Transport{}, "POST", "http://"+l.Addr().String()+path, nil); err != nil || code != 403 {
			t.Errorf("%s: %d %v", path, code, err)
		}
	}
}

// A revocation ends a connection that is open, at once, and what was issued
// afterwards counts.
func TestRevokedOnAnOpenConnection(t *testing.T) {
	shield := listen(t, newClock(), nil)
	edge, other := joined(t, shield, "edge1"), joined(t, shield, "edge2")
	tr := edge.Transport()
	defer tr.CloseIdleConnections()
	ask := func() (int, string) {
		code, text, err := edge.get(t, tr, shield.url())
		if err != nil {
			t.Fatal(err)
		}
		return code, text
	}
	if code, text := ask(); code != 200 {
		t.Fatal(code, text)
	}
	if !shield.admitsLast() || shield.Admits(new(http.Request)) {
		t.Fatal("a running request of a node that is admitted, or one without a certificate, is judged wrongly")
	}
	pending := shield.invite(t, InviteOptions{Name: "edge1"})
	out, err := shield.edit(t).Revoke("edge1", false)
	if err != nil || len(out.Serials) != 1 || out.Codes != 1 || out.Equal {
		t.Fatalf("%+v %v", out, err)
	}
	if code, text := ask(); code != 403 || !strings.HasPrefix(text, "edge1 has been revoked; ") {
		t.Fatal(code, text)
	}
	if shield.admitsLast() {
		t.Fatal("a running request of a node that has been revoked goes on")
	}
	edge.wantRefused(t, shield, revoked, "edge1 has been revoked")
	other.wantHello(t, shield, "edge2")
	// Neither renewing nor a code from before helps.
	_, csr, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	body, _ := json.Marshal(renewRequest{Version: 1, CSR: csr})
	if code, text, err := fetch(edge.Transport(), "POST", shield.url()+renewPath, bytes.NewReader(body)); err != nil || code != 403 {
		t.Fatal(code, text, err)
	}
	if _, err := newNode(t, shield.clock, nil).tryJoin(pending); err == nil || !strings.Contains(err.Error(), "edge1, which has been revoked") {
		t.Fatal(err)
	}
	if l, err := shield.edit(t).List(); err != nil || l.Nodes[0].State != StateRevoked || l.Nodes[1].State != StateVoid {
		t.Fatalf("%+v %v", l, err)
	}
	// A clock that jumps ahead for years and back lets nobody in again.
	shield.clock.add(5 * 365 * 24 * time.Hour)
	ask()
	shield.clock.add(-5 * 365 * 24 * time.Hour)
	edge.wantRefused(t, shield, revoked, "edge1 has been revoked")
	// Invited again in the same second, by a clock that was set back since.
	shield.clock.add(-2 * time.Minute)
	old := *edge.current().joined[0].cert
	edge.join(t, shield.invite(t, InviteOptions{Name: "edge1"}))
	edge.wantHello(t, shield, "edge1")
	if code, text, err := fetch(as(old), "GET", shield.url(), nil); err != nil || code != 403 {
		t.Fatal(code, text, err)
	}
}

// A connection that was opened in time does not outlive its certificate.
func TestExpiryOnAnOpenConnection(t *testing.T) {
	shield := listen(t, newClock(), nil)
	edge := joined(t, shield, "edge1")
	tr := edge.Transport()
	defer tr.CloseIdleConnections()
	conns := func() int { return len(shieldConns(tr, edge, shield, t)) }
	if conns() != 1 || conns() != 0 {
		t.Fatal("the connection is not kept")
	}
	shield.clock.add(26 * 24 * time.Hour) // it should have been renewed: close and come with the new one
	if conns() != 0 || conns() != 1 {
		t.Fatal("a connection with an old certificate is kept")
	}
	shield.clock.add(4*24*time.Hour - time.Second)
	conns()
	shield.clock.add(2 * time.Second)
	if code, text, err := edge.get(t, tr, shield.url()); err != nil || code != 403 || !strings.Contains(text, "expired") {
		t.Fatal(code, text, err)
	}
	shield.clock.add(-31 * 24 * time.Hour) // set back: before it was issued
	if _, _, err := edge.get(t, nil, shield.url()); err == nil || !strings.Contains(err.Error(), "the certificate is not valid before 2031-05-06 07:03:09 UTC") {
		t.Fatal(err)
	}
	if code, text, err := fetch(as(*edge.current().joined[0].cert), "GET", shield.url(), nil); err != nil || code != 403 || !strings.Contains(text, "is not valid before") {
		t.Fatal(code, text, err)
	}
}

// shieldConns is the connections that one more request made.
func shieldConns(tr *http.Transport, edge, shield *testNode, t *testing.T) (made []string) {
	dial := tr.DialTLSContext
	defer func() { tr.DialTLSContext = dial }()
	tr.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		made = append(made, addr)
		return dial(ctx, network, addr)
	}
	if code, text, err := edge.get(t, tr, shield.url()); err != nil || code != 200 {
		t.Fatal(code, text, err)
	}
	return made
}

func TestRequestsToJoinAndRenew(t *testing.T) {
	shield := listen(t, newClock(), nil)
	edge := joined(t, shield, "edge1")
	tr := as(*edge.current().joined[0].cert)
	code, err := ParseCode(shield.invite(t, InviteOptions{Name: "edge2"}))
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csrOf := func(key any, names ...string) string {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "shield"}, DNSNames: names}, key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der}))
	}
	key, proper, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	forged := func() string { // signed by another key than the one in it
		block, _ := pem.Decode([]byte(proper))
		der := slices.Clone(block.Bytes)
		der[len(der)-5] ^= 1
		return string(pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der}))
	}()
	good := joinRequest{Version: 1, Secret: code.Secret[:], CSR: proper, Time: shield.clock.now()}
	change := func(f func(*joinRequest)) []byte {
		r := good
		f(&r)
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	full := change(func(r *joinRequest) {})
	for what, c := range map[string]struct {
		body []byte
		want int
	}{
		"empty":        {nil, 400},
		"null":         {[]byte("null"), 400},
		"list":         {[]byte("[]"), 400},
		"unknown key":  {bytes.Replace(full, []byte(`{`), []byte(`{"name":"shield",`), 1), 400},
		"trailing":     {append(slices.Clone(full), '1'), 400},
		"version":      {change(func(r *joinRequest) { r.Version = 2 }), 400},
		"no secret":    {change(func(r *joinRequest) { r.Secret = nil }), 400},
		"wrong secret": {change(func(r *joinRequest) { r.Secret = make([]byte, 16) }), 403},
		"no csr":       {change(func(r *joinRequest) { r.CSR = "" }), 400},
		"RSA":          {change(func(r *joinRequest) { r.CSR = csrOf(rsaKey) }), 400},
		"P-384":        {change(func(r *joinRequest) { r.CSR = csrOf(ec384) }), 400},
		"forged":       {change(func(r *joinRequest) { r.CSR = forged }), 400},
		"hosts":        {change(func(r *joinRequest) { r.Hosts = []string{"*"} }), 400},
		"many hosts":   {change(func(r *joinRequest) { r.Hosts = slices.Repeat([]string{"a"}, 17) }), 400},
		"host":         {change(func(r *joinRequest) { r.Hosts = []string{"localhost"} }), 403},
		"no time":      {change(func(r *joinRequest) { r.Time = time.Time{} }), 400},
		"address":      {change(func(r *joinRequest) { r.Address = "http://x" }), 400},
		"large":        {append(slices.Clone(full), bytes.Repeat([]byte(" "), maxJoin+1-len(full))...), 400},
	} {
		if status, text, err := fetch(tr, "POST", shield.url()+joinPath, bytes.NewReader(c.body)); err != nil || status != c.want || strings.Contains(text, "\n") {
			t.Errorf("%s: %d %q %v", what, status, text, err)
		}
	}
	if status, _, err := fetch(tr, "GET", shield.url()+joinPath, nil); err != nil || status != 405 {
		t.Error(status, err)
	}
	// At the limit it still works, with or without a certificate, and the names
	// in the request count for nothing.
	body := change(func(r *joinRequest) { r.CSR = csrOf(key, "localhost", "shield") })
	body = append(body, bytes.Repeat([]byte(" "), maxJoin-len(body))...)
	status, text, err := fetch(as(), "POST", shield.url()+joinPath, bytes.NewReader(body))
	var answer joinAnswer
	if err != nil || status != 200 || json.Unmarshal([]byte(text), &answer) != nil || answer.CAKey != "" {
		t.Fatal(status, text, err)
	}
	cert, err := parseCertificate(answer.Certificate)
	if err != nil || cert.Subject.String() != "CN=edge2" || !slices.Equal(cert.DNSNames, []string{"edge2"}) {
		t.Fatal(err, cert.Subject, cert.DNSNames)
	}
	// So it is with renewing, which gives nobody another name.
	renew, _ := json.Marshal(renewRequest{Version: 1, CSR: csrOf(key, "shield")})
	status, text, err = fetch(tr, "POST", shield.url()+renewPath, bytes.NewReader(renew))
	if err != nil || status != 200 || json.Unmarshal([]byte(text), &answer) != nil {
		t.Fatal(status, text, err)
	}
	if cert, err = parseCertificate(answer.Certificate); err != nil || answer.Name != "edge1" || cert.Subject.String() != "CN=edge1" || !slices.Equal(cert.DNSNames, []string{"edge1"}) {
		t.Fatal(err, cert.Subject, cert.DNSNames)
	}
	for _, body := range []string{"", "{}", `{"version":1}`, `{"version":1,"csr":"x","name":"edge2"}`} {
		if status, _, err := fetch(tr, "POST", shield.url()+renewPath, strings.NewReader(body)); err != nil || status != 400 {
			t.Errorf("%q: %d %v", body, status, err)
		}
	}
}

// Guessing is bounded, and so is what the log says of it.
func TestLimits(t *testing.T) {
	clock := newClock()
	n, err := Open(Options{Dir: filepath.Join(t.TempDir(), "tiers"), Listen: true, Now: clock.now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	log := &buffer{}
	n.o.Log = slog.New(slog.NewTextHandler(log, nil))
	shield := &testNode{Trust: n, meter: &counter{}}
	n.o.Meter = shield.meter
	shield.serve(t)
	tr := as()
	for range 50 {
		if _, _, err := fetch(tr, "POST", shield.url()+joinPath, strings.NewReader("{}")); err != nil {
			t.Fatal(err)
		}
	}
	tried, refusals := shield.meter.count("node refused", badRequest), shield.meter.count("node refused", tooMany)
	if tried+refusals != 50 || tried < joinBurst || tried > joinBurst+10 {
		t.Errorf("%d tries and %d refusals", tried, refusals)
	}
	if lines := strings.Count(log.String(), "\n"); lines < warnBurst || lines > warnBurst+10 {
		t.Errorf("%d lines", lines)
	}
}

// A body that never comes does not hold a connection for ever: the deadline is
// set; that it is kept to is net/http's.
func TestSlowJoin(t *testing.T) {
	shield := listen(t, newClock(), nil)
	shield.bodyTime = 100 * time.Millisecond
	conn, err := tls.Dial("tcp", shield.addr, as().TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST "+joinPath+" HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(joinTime))
	text, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 400 ") {
		t.Fatalf("%q %v", text, err)
	}
}

func TestDamagedFiles(t *testing.T) {
	for _, name := range []string{caFile, nodesFile, joinedFile} {
		for what, damage := range map[string]func([]byte) []byte{
			"empty":     func([]byte) []byte { return nil },
			"half":      func(b []byte) []byte { return b[:len(b)/2] },
			"other":     func([]byte) []byte { return []byte(`{"version":1,"names":[]}`) },
			"null":      func([]byte) []byte { return []byte("null") },
			"version":   func(b []byte) []byte { return bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 2`), 1) },
			"trailing":  func(b []byte) []byte { return append(b, b...) },
			"flipped":   func(b []byte) []byte { return bytes.Replace(b, []byte("A"), []byte("B"), 40) },
			"not there": nil,
		} {
			if name == joinedFile && (damage == nil) {
				continue // nothing was joined then
			}
			if name == nodesFile && what == "flipped" || name == caFile && damage == nil {
				continue // what is flipped there is a hash, of no use to anyone; without a CA nobody is admitted
			}
			t.Run(name+" "+what, func(t *testing.T) { testDamage(t, name, damage) })
		}
	}
}

func testDamage(t *testing.T, name string, damage func([]byte) []byte) {
	far := listen(t, newClock(), nil)
	shield := listen(t, far.clock, nil)
	shield.join(t, far.invite(t, InviteOptions{Name: "shield"}))
	edge, bad := joined(t, shield, "edge1"), joined(t, shield, "edge2")
	code := shield.invite(t, InviteOptions{Name: "edge3"})
	if _, err := shield.edit(t).Revoke("edge2", false); err != nil {
		t.Fatal(err)
	}
	if name == nodesFile {
		bad.wantRefused(t, shield, revoked, "edge2 has been revoked") // it has been read
	}
	path := filepath.Join(shield.dir, name)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if damage == nil {
		err = os.Remove(path)
	} else {
		err = os.WriteFile(path, damage(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	// The running node goes on with what it knows, and says so; nobody who was
	// out comes in.
	edge.wantHello(t, shield, "edge1")
	bad.wantRefused(t, shield, revoked, "edge2 has been revoked")
	if !strings.Contains(shield.log.String(), "level=ERROR") || !strings.Contains(shield.log.String(), name+" cannot be used") || shield.meter.count("trust damaged", name) != 1 {
		t.Errorf("log: %s", shield.log)
	}
	if name != joinedFile {
		if _, err := newNode(t, far.clock, nil).tryJoin(code); err == nil || !strings.Contains(err.Error(), "cannot let anyone in now") {
			t.Errorf("joined: %v", err)
		}
	}
	// A node that starts says which file it is, and does not start.
	_, err = Open(Options{Dir: shield.dir, Listen: true, Now: far.clock.now})
	if !errors.Is(err, registry.ErrCorrupt) || !strings.Contains(err.Error(), path+" cannot be used: ") {
		t.Errorf("opened: %v", err)
	}
	if now, _ := os.ReadFile(path); damage != nil && !bytes.Equal(now, damage(text)) {
		t.Error("the damaged file was written over")
	}
	// Mended, it goes on.
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	newNode(t, far.clock, nil).join(t, code)
}

// A node in front cannot revoke others: revocations are signed by the
// authority.
func TestForgedRevocations(t *testing.T) {
	shield := listen(t, newClock(), nil)
	own := shield.current().own
	other, err := newAuthority("other", shield.clock.now())
	if err != nil {
		t.Fatal(err)
	}
	at := shield.clock.now().Truncate(time.Second)
	list := []revocation{{CA: own.id, Name: "edge1", At: at}}
	answer := func(change func(*revokedAnswer)) []byte {
		a, err := own.tell(list)
		if err != nil {
			t.Fatal(err)
		}
		change(&a)
		text, _ := json.Marshal(a)
		return text
	}
	known := []*x509.Certificate{own.cert}
	if got, err := heard(answer(func(*revokedAnswer) {}), known); err != nil || !slices.Equal(got, list) {
		t.Fatal(got, err)
	}
	byOther, err := other.tell([]revocation{{CA: other.id, Name: "edge1", At: at}})
	if err != nil {
		t.Fatal(err)
	}
	forgedText, _ := json.Marshal(list)
	sum := signed(forgedText)
	signature, err := ecdsa.SignASN1(rand.Reader, other.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := own.tell(nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign.List, _ = json.Marshal([]revocation{{CA: other.id, Name: "edge1", At: at}})
	sum = signed(foreign.List)
	if foreign.Signature, err = ecdsa.SignASN1(rand.Reader, own.key, sum[:]); err != nil {
		t.Fatal(err)
	}
	asText := func(v any) []byte { b, _ := json.Marshal(v); return b }
	for what, text := range map[string][]byte{
		"nothing":           nil,
		"unsigned":          answer(func(a *revokedAnswer) { a.Signature = nil }),
		"changed":           answer(func(a *revokedAnswer) { a.List = bytes.Replace(a.List, []byte("edge1"), []byte("edge2"), 1) }),
		"other's":           asText(byOther),
		"signed by another": answer(func(a *revokedAnswer) { a.List, a.Signature = forgedText, signature }),
		"of another's":      asText(foreign),
		"version":           answer(func(a *revokedAnswer) { a.Version = 2 }),
	} {
		if got, err := heard(text, known); err == nil {
			t.Errorf("%s: %v", what, got)
		}
	}
}

// A node that only joined cannot pass for the one behind, even if it has been
// allowed to serve under a name.
func TestEdgeCannotPassForShield(t *testing.T) {
	shield := listen(t, newClock(), nil)
	victim := joined(t, shield, "edge1")
	thief := joined(t, shield, "edge2")
	cert := thief.current().joined[0].cert
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.NotFoundHandler(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go srv.Serve(l)
	defer srv.Close()
	if _, _, err := victim.get(t, nil, "https://"+l.Addr().String()); err == nil || !strings.Contains(err.Error(), "its certificate is not for 127.0.0.1 but for [] and edge2") {
		t.Fatal(err)
	}
	// Nor can a node of another group that the victim belongs to: at the
	// address where it joined, only that authority counts.
	second := listen(t, shield.clock, nil)
	victim.join(t, second.invite(t, InviteOptions{Name: "edge1"}))
	victim.wantHello(t, second, "edge1")
	victim.wantHello(t, shield, "edge1")
	c, err := victim.Client(shield.addr)
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := tls.Dial("tcp", second.addr, c); err == nil || !strings.Contains(err.Error(), "an authority that this node has not joined") {
		conn.Close()
		t.Fatal(err)
	}
}

func TestServerThatWasRevoked(t *testing.T) {
	a := listen(t, newClock(), nil)
	edge := joined(t, a, "edge1")
	b := newNode(t, a.clock, func(o *Options) { o.Listen = true })
	b.join(t, a.invite(t, InviteOptions{Name: "b", Equal: true}))
	b.serve(t)
	edge.wantHello(t, b, "edge1")
	out, err := a.Revoke("b", false)
	if err != nil || !out.Equal {
		t.Fatal(out, err)
	}
	c := client(edge.Transport())
	edge.pollRevoked(context.Background(), c)
	if _, _, err := edge.get(t, nil, b.url()); err == nil || !strings.Contains(err.Error(), "the node there, b, has been revoked") {
		t.Fatal(err)
	}
	edge.wantHello(t, a, "edge1")
	// The certificates that b makes itself later count as little, and its name
	// is gone for good.
	b.wantRefused(t, a, revoked, "b has been revoked")
	b.clock.add(25 * 24 * time.Hour)
	b.wantRefused(t, a, revoked, "b has been revoked")
	if _, err := a.Invite(InviteOptions{Name: "b", Address: a.url()}); !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), "choose another name") {
		t.Fatal(err)
	}
	// Once it knows, it makes itself none.
	if err := b.merge(a.current().nodes.Revoked, "a test"); err != nil {
		t.Fatal(err)
	}
	again := nodeIn(t, b.dir, b.clock, nil)
	if _, err := again.ownCertificate(again.current()); err == nil {
		t.Fatal("a revoked node made itself a certificate")
	}
}
