package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/weir-registry/weir/registry"
)

// elsewhere is certificates that somebody else issues and replaces.
type elsewhere struct {
	files Files
	log   *slog.Logger

	mu     sync.Mutex
	stamps [3]stamp // guarded by mu, and so is all below
	bad    string   // the error last logged
	cert   *tls.Certificate
	roots  *x509.CertPool
	cas    []*x509.Certificate
}

// openElsewhere reads the files. Errors name the one that cannot be used.
func openElsewhere(f Files, log *slog.Logger) (*elsewhere, error) {
	if f.Cert == "" || f.Key == "" || f.CA == "" {
		return nil, registry.Errorf(registry.ErrInvalid, "tls: cert, key and ca belong together, and one is missing")
	}
	e := &elsewhere{files: f, log: log}
	stamps, err := e.stampsNow()
	if err == nil {
		err = e.read()
	}
	e.stamps = stamps
	return e, err
}

func (e *elsewhere) stampsNow() (stamps [3]stamp, err error) {
	for i, path := range []string{e.files.Cert, e.files.Key, e.files.CA} {
		if stamps[i], err = stampOf(path); err != nil {
			return stamps, registry.Wrap(registry.ErrInvalid, err, "tls")
		}
	}
	return stamps, nil
}

// read takes all three files or none. mu is held, or nobody else knows e.
func (e *elsewhere) read() error {
	cert, err := tls.LoadX509KeyPair(e.files.Cert, e.files.Key)
	if err != nil {
		return registry.Wrap(registry.ErrInvalid, err, fmt.Sprintf("tls: %s and %s", e.files.Cert, e.files.Key))
	}
	text, err := os.ReadFile(e.files.CA)
	if err != nil {
		return registry.Wrap(registry.ErrInvalid, err, "tls")
	}
	cas, err := parseCAs(text)
	if err != nil {
		return registry.Wrap(registry.ErrInvalid, err, "tls: "+e.files.CA)
	}
	roots := x509.NewCertPool()
	for _, ca := range cas {
		roots.AddCert(ca)
	}
	e.cert, e.roots, e.cas = &cert, roots, cas
	return nil
}

// parseCAs is every certificate in a PEM file; there is at least one, and each
// is an authority's.
func parseCAs(text []byte) ([]*x509.Certificate, error) {
	var cas []*x509.Certificate
	for block, rest := pemNext(text); block != nil; block, rest = pemNext(rest) {
		ca, err := x509.ParseCertificate(block)
		if err != nil {
			return nil, err
		}
		if !ca.IsCA {
			return nil, fmt.Errorf("the certificate of %q is not an authority's", ca.Subject)
		}
		cas = append(cas, ca)
	}
	if len(cas) == 0 {
		return nil, errors.New("there is no certificate in it")
	}
	return cas, nil
}

// current is what the files hold now, or held when they could last be used.
func (e *elsewhere) current() (*tls.Certificate, *x509.CertPool, []*x509.Certificate) {
	e.mu.Lock()
	defer e.mu.Unlock()
	stamps, err := e.stampsNow()
	if err == nil && stamps != e.stamps {
		if err = e.read(); err == nil {
			e.stamps, e.bad = stamps, ""
			e.log.Info("read certificates again", "cert", e.files.Cert, "until", e.cert.Leaf.NotAfter)
		}
	}
	if err != nil && err.Error() != e.bad {
		e.bad = err.Error()
		e.log.Error("changed certificates cannot be used; the old ones stay", "err", err)
	}
	return e.cert, e.roots, e.cas
}
