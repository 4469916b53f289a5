package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/weir-registry/weir/registry"
)

func someCode() Code {
	c := Code{Address: "https://shield.example.com:5001", Expires: time.Unix(1900000000, 0).UTC(), Equal: true}
	for i := range c.CA {
		c.CA[i] = byte(i * 7)
	}
	for i := range c.Secret {
		c.Secret[i] = byte(255 - i)
	}
	return c
}

func TestCode(t *testing.T) {
	want := someCode()
	text := want.String()
	if got, err := ParseCode(text); err != nil || got != want {
		t.Fatal(got, err)
	}
	// As a terminal or a mail breaks it.
	if got, err := ParseCode(" " + text[:40] + "\r\n  " + text[40:] + "\n"); err != nil || got != want {
		t.Fatal(got, err)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r != '-' && r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
		t.Errorf("%s has what a shell reads otherwise", text)
	}
	// One character changed, left out, twice, or two exchanged: found at once.
	for i := range text {
		c := byte('A')
		if text[i] == c {
			c = 'B'
		}
		bad := []string{text[:i] + string(c) + text[i+1:], text[:i] + text[i+1:], text[:i] + text[i:i+1] + text[i:]}
		if i > 0 && text[i-1] != text[i] {
			bad = append(bad, text[:i-1]+text[i:i+1]+text[i-1:i]+text[i+1:])
		}
		for _, b := range bad {
			if got, err := ParseCode(b); !errors.Is(err, registry.ErrInvalid) {
				t.Errorf("%s was taken for %v, %v", b, got, err)
			}
		}
	}
	for text, want := range map[string]string{
		"":          "does not begin with",
		"weir2_abc": `is of a version that this weir does not know, "weir2"`,
		"weir1_":    "is incomplete",
		text[:60]:   "is incomplete",
		text + text: "typing error",
		"weir1_€":   "typing error",
		codePrefix + strings.Repeat("A", maxCode): "too long",
	} {
		if _, err := ParseCode(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseCode(f *testing.F) {
	f.Add(someCode().String())
	f.Add("weir1_AAAA")
	f.Add(Code{Address: "https://[::1]:1"}.String())
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCode(text)
		if err != nil {
			if !errors.Is(err, registry.ErrInvalid) || c != (Code{}) {
				t.Fatal(c, err)
			}
			return
		}
		if !strings.HasPrefix(c.Address, "https://") || hostOf(c.Address) == "" {
			t.Fatalf("an address %q", c.Address)
		}
		if again := c.String(); again != strings.Join(strings.Fields(text), "") {
			t.Fatalf("%s is %s", text, again)
		}
	})
}

func FuzzParseJoin(f *testing.F) {
	own, csr, err := newRequest()
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(joinRequest{Version: 1, Secret: make([]byte, secretSize), CSR: csr, Time: time.Unix(1e9, 0), Hosts: []string{"a.b", "::1"}, Address: "https://x:1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"csr":"-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if key, err := parseRenew(text); err == nil && (key == nil || key.Curve != elliptic.P256()) {
			t.Fatal("renewed for", key)
		}
		if _, m, err := checkJoined(text, someCode(), own, time.Unix(1e9, 0)); err == nil {
			t.Fatal("an answer of nobody was taken", m)
		}
		req, key, err := parseJoin(text)
		if err != nil {
			return
		}
		if len(req.Secret) != secretSize || len(req.Hosts) > maxHosts || key == nil || key.Curve != elliptic.P256() || req.Time.IsZero() {
			t.Fatalf("%+v %v", req, key)
		}
		for _, h := range req.Hosts {
			if clean, ok := cleanHost(h); !ok || clean != h || strings.ContainsAny(h, "*/ \n") {
				t.Fatalf("host %q", h)
			}
		}
	})
}

// FuzzFiles reads files with whatever in them: no panic, and what is read is
// whole.
func FuzzFiles(f *testing.F) {
	a, err := newAuthority("a", time.Unix(1.9e9, 0))
	if err != nil {
		f.Fatal(err)
	}
	for _, v := range []any{a.record, nodesRecord{Version: 1, Invites: []inviteRecord{{Name: "x", Hash: make([]byte, 32), Expires: time.Unix(1, 0)}}},
		joinedRecord{Version: 1, Joined: []memberRecord{{Name: "x"}}}, revokedAnswer{Version: 1, CA: a.id}} {
		text, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	dir := directory(f.TempDir())
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, name := range stateFiles {
			if err := os.WriteFile(dir.path(name), text, 0o600); err != nil {
				t.Fatal(err)
			}
			s := &state{}
			if err := dir.load(name, s); err != nil {
				continue
			}
			if s.own != nil && (s.own.key == nil || !s.own.key.PublicKey.Equal(s.own.cert.PublicKey)) {
				t.Fatal("an authority with another key")
			}
			for _, m := range s.joined {
				if key, ok := m.cert.PrivateKey.(*ecdsa.PrivateKey); !ok || !key.PublicKey.Equal(m.cert.Leaf.PublicKey) {
					t.Fatal("a membership with another key")
				}
			}
			for _, i := range s.nodes.Invites {
				if len(i.Hash) != 32 {
					t.Fatal("an invitation without a hash")
				}
			}
		}
		if list, err := heard(text, []*x509.Certificate{a.cert}); err == nil {
			t.Fatal("unsigned revocations", list)
		}
	})
}
