package trust

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// codePrefix begins every join code, and says its version.
	codePrefix = "weir1_"
	secretSize = 16
	checkSize  = 4
	// codeHead is flags, expiry, fingerprint and secret.
	codeHead = 1 + 8 + sha256.Size + secretSize
	maxCode  = 1 << 10
)

// flagEqual marks the code of an equal.
const flagEqual = 1

// A Code is what a node that is to join must know: where to go, whom to
// expect there, and the secret that lets it in once. Its text is one word
// without characters that a shell or a terminal would cut at, and has a
// checksum.
type Code struct {
	// Address is of the node behind, "https://host:port".
	Address string
	// CA is the SHA-256 fingerprint of its authority.
	CA [sha256.Size]byte
	// Secret is the secret itself.
	Secret [secretSize]byte
	// Expires is until when it can be used, in whole seconds.
	Expires time.Time
	// Equal says that the joiner gets the authority's key.
	Equal bool
}

// String is the code as it is copied.
func (c Code) String() string {
	b := make([]byte, 0, codeHead+len(c.Address)+checkSize)
	flags := byte(0)
	if c.Equal {
		flags |= flagEqual
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Expires.Unix()))
	b = append(b, c.CA[:]...)
	b = append(b, c.Secret[:]...)
	b = append(b, c.Address...)
	b = append(b, checksum(b)...)
	return codePrefix + base64.RawURLEncoding.EncodeToString(b)
}

func checksum(b []byte) []byte {
	sum := sha256.Sum256(append([]byte(codePrefix), b...))
	return sum[:checkSize]
}

// ParseCode reads a join code; white space, which copying adds, is ignored.
// Errors are ErrInvalid and say what is wrong with it.
func ParseCode(text string) (Code, error) {
	text = strings.Join(strings.Fields(text), "")
	wrong := func(format string, args ...any) (Code, error) {
		return Code{}, registry.Errorf(registry.ErrInvalid, "the join code "+format, args...)
	}
	if len(text) > maxCode {
		return wrong("is too long")
	}
	body, ok := strings.CutPrefix(text, codePrefix)
	if !ok {
		if version, _, found := strings.Cut(text, "_"); found && strings.HasPrefix(version, "weir") {
			return wrong("is of a version that this weir does not know, %q", version)
		}
		return wrong("does not begin with %q: it is the one word that \"weir tiers invite\" prints", codePrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return wrong("is incomplete or has a typing error")
	}
	if len(b) <= codeHead+checkSize {
		return wrong("is incomplete")
	}
	b, check := b[:len(b)-checkSize], b[len(b)-checkSize:]
	if !bytes.Equal(check, checksum(b)) {
		return wrong("is incomplete or has a typing error: its checksum is wrong")
	}
	flags, seconds := b[0], binary.BigEndian.Uint64(b[1:])
	if flags&^flagEqual != 0 || seconds > 1<<40 {
		return wrong("has something in it that this weir does not know")
	}
	c := Code{Expires: time.Unix(int64(seconds), 0).UTC(), Equal: flags&flagEqual != 0, Address: string(b[codeHead:])}
	copy(c.CA[:], b[9:])
	copy(c.Secret[:], b[9+sha256.Size:])
	if clean, err := cleanAddress(c.Address); err != nil || clean != c.Address {
		return wrong("has an address in it that is none")
	}
	return c, nil
}

// cleanAddress is the address of a node, "https://host:port", in the one form
// that all nodes compare.
func cleanAddress(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		u.Opaque != "" || u.Path != "" && u.Path != "/" || u.Port() == "" {
		return "", fmt.Errorf(`%q is not the address of a node, such as "https://shield.example.com:5001"`, text)
	}
	if _, ok := cleanHost(u.Hostname()); !ok {
		return "", errors.New(u.Hostname() + " is neither a host's name nor its address")
	}
	return "https://" + strings.ToLower(u.Host), nil
}

// hostOf is the host of an address that is clean.
func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	host, _ := cleanHost(u.Hostname())
	return host
}
