package wan

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// An Authority signs the certificates that nodes know each other by. Another
// one's are those of strangers.
type Authority struct {
	// CA is the file of its own certificate, PEM.
	CA string

	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// A Certificate says what to sign.
type Certificate struct {
	// Name is the subject's common name.
	Name string
	// Hosts are the addresses and names that it is reached by.
	Hosts []string
	// From and Until are when it is valid; zero: from an hour ago, and for a
	// day.
	From, Until time.Time
}

// NewAuthority makes an authority whose files are in a directory of the test.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t, dir: t.TempDir()}
	a.CA = filepath.Join(a.dir, "ca.pem")
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: a.serial(), Subject: pkix.Name{CommonName: "wan authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a.key = a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	a.check(err)
	a.cert, err = x509.ParseCertificate(der)
	a.check(err)
	a.write(a.CA, "CERTIFICATE", der)
	return a
}

// Issue writes a certificate, for servers and clients alike, and its key, and
// returns their files.
func (a *Authority) Issue(c Certificate) (cert, key string) {
	a.t.Helper()
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: a.serial(), Subject: pkix.Name{CommonName: c.Name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if !c.From.IsZero() {
		template.NotBefore = c.From
	}
	if !c.Until.IsZero() {
		template.NotAfter = c.Until
	}
	for _, h := range c.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	k := a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	a.check(err)
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	a.check(err)
	base := filepath.Join(a.dir, c.Name+"-"+template.SerialNumber.Text(36))
	cert, key = base+".pem", base+".key"
	a.write(cert, "CERTIFICATE", der)
	a.write(key, "PRIVATE KEY", secret)
	return cert, key
}

func (a *Authority) newKey() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.check(err)
	return k
}

func (a *Authority) serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	a.check(err)
	return n
}

func (a *Authority) write(file, kind string, der []byte) {
	a.check(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

func (a *Authority) check(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatalf("authority: %v", err)
	}
}
