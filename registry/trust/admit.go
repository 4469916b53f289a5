package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Why a node is refused: the labels of the event "node refused".
const (
	noCertificate = "no certificate"
	otherCA       = "another authority"
	expired       = "expired"
	notYetValid   = "not yet valid"
	revoked       = "revoked"
	unreadable    = "not set up"
	badRequest    = "bad request"
	tooMany       = "too many tries"
	codeUnknown   = "unknown code"
	codeUsed      = "used code"
	codeExpired   = "expired code"
	clockOff      = "clock off"
	hostDenied    = "host not allowed"
)

// A refusal is why a node gets nothing. It is an error whose text the node may
// read.
type refusal struct {
	status int
	reason string // one of the above
	text   string
}

// Error implements error.
func (r *refusal) Error() string { return r.text }

func refuse(reason, format string, args ...any) *refusal {
	return &refusal{status: http.StatusForbidden, reason: reason, text: fmt.Sprintf(format, args...)}
}

// examine checks who a certificate is from and whether it is good now, and
// returns the authority's fingerprint. Whom it is from is settled before the
// time is looked at: only our own nodes learn that theirs has expired.
func examine(certs []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) (ca string, r *refusal) {
	if len(certs) == 0 {
		return "", refuse(noCertificate, "a node must show a certificate here, and this one has none: it has to join first (weir tiers join)")
	}
	leaf := certs[0]
	chain := chainOf(certs, roots, usage, now)
	switch {
	case chain == nil:
		return "", refuse(otherCA, "the certificate is from another authority, or for another use")
	case now.After(leaf.NotAfter):
		return "", refuse(expired, "the certificate expired at %s; the clock says %s, %v later: the node has to join again (weir tiers invite, weir tiers join)",
			clock(leaf.NotAfter), clock(now), now.Sub(leaf.NotAfter).Round(time.Second))
	case now.Before(leaf.NotBefore):
		return "", refuse(notYetValid, "the certificate is not valid before %s, and the clock says %s, which is %v behind",
			clock(leaf.NotBefore), clock(now), leaf.NotBefore.Sub(now).Round(time.Second))
	default:
		return fingerprintText(chain[len(chain)-1]), nil
	}
}

// chainOf leads from a certificate to one of the roots; nil if nothing does. It
// is made for a time at which the certificate itself is good.
func chainOf(certs []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) []*x509.Certificate {
	leaf := certs[0]
	if now.Before(leaf.NotBefore) {
		now = leaf.NotBefore
	} else if now.After(leaf.NotAfter) {
		now = leaf.NotAfter
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return nil
	}
	return chains[0]
}

// A vouch remembers that a certificate leads to an authority, which takes a
// tenth of a millisecond to find out, and until when all on the way is good.
// Only what was found good is remembered.
type vouch struct {
	roots       *x509.CertPool
	ca          string
	from, until time.Time
}

// maxVouches bounds them; they are forgotten all at once.
const maxVouches = 4096

// examineClient is examine for the certificate of a request, of which many
// come on one connection.
func (t *Trust) examineClient(certs []*x509.Certificate, roots *x509.CertPool, now time.Time) (ca string, r *refusal) {
	if len(certs) == 0 {
		return examine(certs, roots, x509.ExtKeyUsageClientAuth, now)
	}
	id := fingerprint(certs[0])
	t.vouchMu.Lock()
	v, ok := t.vouches[id]
	t.vouchMu.Unlock()
	if ok && v.roots == roots && !now.Before(v.from) && !now.After(v.until) {
		return v.ca, nil
	}
	if ca, r = examine(certs, roots, x509.ExtKeyUsageClientAuth, now); r != nil {
		return ca, r
	}
	v = vouch{roots: roots, ca: ca, from: certs[0].NotBefore, until: certs[0].NotAfter}
	for _, c := range chainOf(certs, roots, x509.ExtKeyUsageClientAuth, now) {
		if c.NotBefore.After(v.from) {
			v.from = c.NotBefore
		}
		if c.NotAfter.Before(v.until) {
			v.until = c.NotAfter
		}
	}
	t.vouchMu.Lock()
	defer t.vouchMu.Unlock()
	if len(t.vouches) >= maxVouches {
		clear(t.vouches)
	}
	t.vouches[id] = v
	return ca, nil
}

// clock is a time as people compare it.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// admit decides about one request's certificate.
func (t *Trust) admit(certs []*x509.Certificate) *refusal {
	s := t.current()
	var roots *x509.CertPool
	if t.files != nil {
		_, roots, _ = t.files.current()
	} else if s.own != nil {
		roots = s.ownPool
	}
	if roots == nil {
		return refuse(unreadable, "this node has no authority and admits nobody")
	}
	ca, r := t.examineClient(certs, roots, t.o.Now())
	if r != nil {
		return r
	}
	if s.revoked.has(ca, certs[0]) {
		return refuse(revoked, "%s has been revoked; to come back it needs a new invitation", nameOf(certs[0]))
	}
	return nil
}

// Admits reports whether the node that a request came from would be let through
// by [Trust.Handler] now. It is for answers that take long: a node may be revoked
// meanwhile. It is cheap, and notes nothing.
func (t *Trust) Admits(r *http.Request) bool {
	return r.TLS != nil && t.admit(r.TLS.PeerCertificates) == nil
}

// NodeOf is the name of the node that a request came from. It is right only
// for requests that a [Trust.Handler] has let through; "" if there is none.
func NodeOf(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	return nameOf(r.TLS.PeerCertificates[0])
}

// nameOf is a certificate's node. Ours have it as common name; those from
// elsewhere may have a host alone.
func nameOf(c *x509.Certificate) string {
	switch {
	case c.Subject.CommonName != "":
		return c.Subject.CommonName
	case len(c.DNSNames) > 0:
		return c.DNSNames[0]
	}
	return c.Subject.String()
}

// Server is the TLS configuration of a listener for nodes: TLS 1.3, HTTP/1.1.
// A certificate from another authority ends the handshake. All else is for
// [Trust.Handler], without which the listener would be open to anyone: no
// certificate at all, since that is how a node comes to join, and those that
// have expired or been revoked, whose owners are to be told. Certificates and
// authorities are those in force when a connection is made.
func (t *Trust) Server() *tls.Config {
	c := t.serverFor("")
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		return t.serverFor(hello.Conn.RemoteAddr().String()), nil
	}
	return c
}

// serverFor is the configuration for one connection.
func (t *Trust) serverFor(remote string) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		Time:       t.o.Now,
		// Asked for and not verified by the library, which would not say why
		// it refuses one; VerifyConnection and each request's check do.
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true, // a resumed session is one whose certificate was not shown
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if t.files != nil {
				cert, _, _ := t.files.current()
				return cert, nil
			}
			return t.ownCertificate(t.current())
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			if r := t.admit(cs.PeerCertificates); r != nil && (r.reason == otherCA || r.reason == unreadable) {
				t.refused(r, remote, nameOf(cs.PeerCertificates[0]))
				return r
			}
			return nil
		},
	}
	if t.files != nil {
		_, c.ClientCAs, _ = t.files.current()
	} else if s := t.current(); s.own != nil {
		c.ClientCAs = s.ownPool // told to clients, so that they know which certificate to show
	}
	return c
}

// refused tells operators, a few times a second at most, and the meter always.
func (t *Trust) refused(r *refusal, remote, name string) {
	t.o.Meter.Event("node refused", r.reason)
	if !t.warnings.Allow() {
		t.muted.Add(1)
		return
	}
	args := []any{"reason", r.reason, "text", r.text, "addr", remote}
	if name != "" {
		args = append(args, "node", printable(name)) // what the certificate says, which may be a lie
	}
	if n := t.muted.Swap(0); n > 0 {
		args = append(args, "left_out", n)
	}
	t.o.Log.Warn("node refused", args...)
}

// Client is the TLS configuration for one connection to a node, "host:port".
// The server must have a certificate for that host from an authority whose
// group this node belongs to; if it has joined at that very address, from that
// one. Errors: this node has not joined any.
func (t *Trust) Client(addr string) (*tls.Config, error) {
	host, err := hostPart(addr)
	if err != nil {
		return nil, err
	}
	s := t.current()
	roots, certs, err := t.clientView(s, addr)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		ServerName: host,
		Time:       t.o.Now,
		// The library's check does not know of revocations, and its texts do
		// not say how far off a clock is; VerifyConnection checks all it would.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return t.verifyServer(s, cs.PeerCertificates, roots, host)
		},
		GetClientCertificate: func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			for _, c := range certs {
				if asked.SupportsCertificate(c) == nil {
					return c, nil
				}
			}
			return &tls.Certificate{}, nil // none of ours is of use there; the answer says so
		},
	}, nil
}

// clientView is whom to believe at an address, and what to show there.
func (t *Trust) clientView(s *state, addr string) (*x509.CertPool, []*tls.Certificate, error) {
	if t.files != nil {
		cert, roots, _ := t.files.current()
		return roots, []*tls.Certificate{cert}, nil
	}
	roots := x509.NewCertPool()
	var certs []*tls.Certificate
	pinned := false
	for _, m := range s.joined {
		certs = append(certs, m.cert)
		if m.record.Address == "https://"+addr {
			roots.AddCert(m.ca)
			pinned = true
		}
	}
	if !pinned {
		for _, m := range s.joined {
			roots.AddCert(m.ca)
		}
		if s.own != nil {
			roots.AddCert(s.own.cert)
		}
	}
	if s.own != nil {
		own, err := t.ownCertificate(s)
		if err == nil {
			certs = append(certs, own)
		} else if len(certs) == 0 {
			return nil, nil, err
		}
	}
	if len(certs) == 0 {
		return nil, nil, errors.New("this node has not joined any other: run \"weir tiers invite\" on the node at " + addr + " and \"weir tiers join\" here")
	}
	return roots, certs, nil
}

// verifyServer decides about the node at the other end of a connection made
// here.
func (t *Trust) verifyServer(s *state, certs []*x509.Certificate, roots *x509.CertPool, host string) error {
	ca, r := examine(certs, roots, x509.ExtKeyUsageServerAuth, t.o.Now())
	if r != nil {
		if r.reason == otherCA {
			return errors.New("its certificate is from an authority that this node has not joined")
		}
		return r
	}
	if err := certs[0].VerifyHostname(host); err != nil {
		return fmt.Errorf("its certificate is not for %s but for %v and %s", host, hostsOf(certs[0]), nameOf(certs[0]))
	}
	if s.revoked.has(ca, certs[0]) {
		return fmt.Errorf("the node there, %s, has been revoked", nameOf(certs[0]))
	}
	return nil
}
