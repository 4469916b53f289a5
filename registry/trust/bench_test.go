package trust

import (
	"crypto/x509"
	"testing"
)

// BenchmarkAdmit is what the check of one request costs.
func BenchmarkAdmit(b *testing.B) {
	shield := listen(b, newClock(), nil)
	certs := []*x509.Certificate{joined(b, shield, "edge1").current().joined[0].cert.Leaf}
	for b.Loop() {
		if r := shield.admit(certs); r != nil {
			b.Fatal(r)
		}
	}
}
