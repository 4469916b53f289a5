package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	// authorityLife is how long an authority is good for.
	authorityLife = 10 * 365 * 24 * time.Hour
	// nodeLife is how long a node's certificate is.
	nodeLife = 30 * 24 * time.Hour
	// backdate is how long before now a certificate begins, for machines whose
	// clocks are behind.
	backdate = 5 * time.Minute
	// maxHosts bounds the names in one certificate.
	maxHosts = 16
)

// The PEM blocks there are.
const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
	pemRequest     = "CERTIFICATE REQUEST"
)

// authority is a certificate authority and its key.
type authority struct {
	id     string // fingerprint, hexadecimal
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	record authorityRecord
}

// fingerprint is how a certificate is known: SHA-256 of its DER form.
func fingerprint(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.Raw) }

func fingerprintText(c *x509.Certificate) string {
	f := fingerprint(c)
	return hex.EncodeToString(f[:])
}

// newAuthority makes an authority for a group whose first node has the name.
func newAuthority(name string, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "weir nodes " + serial.Text(16)[:12]}, // tells it from other groups' when a certificate is asked for
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyText, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	return parseAuthority(authorityRecord{Version: fileVersion, Name: name, CA: certificatePEM(der), Key: keyText})
}

// parseAuthority checks that a record is an authority with its own key.
func parseAuthority(r authorityRecord) (*authority, error) {
	cert, err := parseCA(r.CA)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(r.Key)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the key is not the certificate's")
	}
	if !validName(r.Name) {
		return nil, fmt.Errorf("%q is not the name of a node", r.Name)
	}
	return &authority{id: fingerprintText(cert), cert: cert, key: key, record: r}, nil
}

// readAuthority is ca.json; nil if there is none.
func (d directory) readAuthority() (*authority, error) {
	var r authorityRecord
	err := d.read(caFile, &r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a, err := parseAuthority(r)
	if err != nil {
		return nil, d.damaged(caFile, err)
	}
	return a, nil
}

// ensureAuthority is the authority, made now if there is none. It runs inside
// a change. nodes.json is written first: an authority without it is taken for
// damage.
func (d directory) ensureAuthority(now time.Time) (*authority, error) {
	a, err := d.readAuthority()
	if err != nil || a != nil {
		return a, err
	}
	nodes, err := d.readNodes(false)
	if err != nil {
		return nil, err
	}
	if a, err = newAuthority(machineName(), now); err != nil {
		return nil, err
	}
	if err := d.write(nodesFile, nodes); err != nil {
		return nil, err
	}
	return a, d.write(caFile, a.record)
}

// machineName is what a node calls itself whom nobody has invited.
func machineName() string {
	name, _ := os.Hostname()
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	if !validName(name) {
		return "first"
	}
	return name
}

// issue signs a certificate for a node: of a name, for a key, to serve under
// the name and the hosts. issued is when it counts as issued; it begins
// earlier, by backdate.
func (a *authority) issue(name string, hosts []string, key any, issued time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	issued = issued.Truncate(time.Second)
	begin, end := issued.Add(-backdate), issued.Add(nodeLife)
	if begin.Before(a.cert.NotBefore) {
		begin = a.cert.NotBefore // the clock was set back: say so, by a certificate that is not valid yet
	}
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             begin,
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, h := range append([]string{name}, hosts...) {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if !slices.Contains(template.DNSNames, h) {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// issuedAt is when a certificate of ours counts as issued.
func issuedAt(c *x509.Certificate) time.Time { return c.NotBefore.Add(backdate) }

// hostsOf is what a certificate may serve under, beside its node's name.
func hostsOf(c *x509.Certificate) []string {
	var hosts []string
	for _, h := range c.DNSNames {
		if h != c.Subject.CommonName {
			hosts = append(hosts, h)
		}
	}
	for _, ip := range c.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// due reports whether a certificate is to be renewed: two thirds of its life
// are over, or the clock says that it has not begun.
func due(c *x509.Certificate, now time.Time) bool {
	life := c.NotAfter.Sub(c.NotBefore)
	return now.Before(c.NotBefore) || !now.Before(c.NotBefore.Add(life*2/3))
}

func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x3f | 0x40 // positive, and always as long
	return new(big.Int).SetBytes(b), nil
}

func serialText(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

func certificatePEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}))
}

func keyPEM(key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})), nil
}

// onePEM is the bytes of the only block in a text.
func onePEM(text, kind string) ([]byte, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != kind || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("not one PEM block of type %s", kind)
	}
	return block.Bytes, nil
}

func parseCertificate(text string) (*x509.Certificate, error) {
	der, err := onePEM(text, pemCertificate)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func parseCA(text string) (*x509.Certificate, error) {
	cert, err := parseCertificate(text)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA || !cert.BasicConstraintsValid {
		return nil, errors.New("the certificate is not an authority's")
	}
	return cert, nil
}

func parseKey(text string) (*ecdsa.PrivateKey, error) {
	der, err := onePEM(text, pemKey)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, errors.New("the key is not an ECDSA P-256 key")
	}
	return ec, nil
}

// newRequest makes a key and asks for a certificate with it. The request has
// no names: who issues decides on them.
func newRequest() (key *ecdsa.PrivateKey, request string, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, "", err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, "", err
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der})), nil
}

// parseRequest is the public key that a request proves to have the private key
// of. Whatever names it asks for are not looked at.
func parseRequest(text string) (*ecdsa.PublicKey, error) {
	der, err := onePEM(text, pemRequest)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("its key is not an ECDSA P-256 key")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	return key, nil
}

// keyHash tells public keys apart.
func keyHash(key *ecdsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	h := sha256.Sum256(der)
	return h[:], nil
}

// validName reports whether a name may be a node's: lower-case letters,
// digits, dots and hyphens, with a letter or digit at either end, at most 63.
func validName(name string) bool {
	if len(name) == 0 || len(name) > 63 || strings.Contains(name, "..") {
		return false
	}
	for i, c := range []byte(name) {
		word := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !word && (c != '-' && c != '.' || i == 0 || i == len(name)-1) {
			return false
		}
	}
	return net.ParseIP(name) == nil
}

// cleanHost is a host in the form that certificates have it in; ok is false if
// it is neither an address nor a name. Wildcards are neither.
func cleanHost(host string) (clean string, ok bool) {
	if ip := net.ParseIP(host); ip != nil {
		return ip.String(), !ip.IsUnspecified()
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if len(host) == 0 || len(host) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(host, ".") {
		if !validName(label) {
			return "", false
		}
	}
	return host, true
}

// pemNext is the next certificate in a text, whatever else is around it; nil
// if there is none.
func pemNext(text []byte) (der, rest []byte) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, nil
		}
		if block.Type == pemCertificate {
			return block.Bytes, text
		}
	}
}
