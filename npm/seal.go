package npm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

// begun is a login that has begun, as the address of its page tells it. It is
// sealed by a key that all nodes have: so the page, on any of them, can say
// truly where the login was begun, and whoever comes by the page's address,
// which browsers keep, cannot claim the token.
type begun struct {
	ID    string
	From  string // an address
	Agent string // what the client calls itself
	At    time.Time
}

// maxAgent is how much of a client's name for itself is kept.
const maxAgent = 32

// seal is the text of b: at most maxRef bytes that need no escaping.
// ErrUnavailable if this node has no key yet.
func seal(keys []registry.SigningKey, b begun) (string, error) {
	if len(keys) == 0 {
		return "", registry.Errorf(registry.ErrUnavailable, "this node knows no accounts yet")
	}
	box, err := boxOf(keys[0])
	if err != nil {
		return "", err
	}
	text := strings.Join([]string{b.ID, b.From, strconv.FormatInt(b.At.Unix(), 36), headerText(b.Agent[:min(len(b.Agent), maxAgent)])}, " ")
	sealed := base64.RawURLEncoding.EncodeToString(box.Seal(nil, nil, []byte(text), nil))
	if len(sealed) > maxRef {
		return "", registry.Errorf(registry.ErrUnavailable, "the id of a login is too long")
	}
	return sealed, nil
}

// unseal is what seal made text of; ErrNotFound if it is not that, or if the
// key is gone.
func unseal(keys []registry.SigningKey, text string) (begun, error) {
	bad := registry.Errorf(registry.ErrNotFound, "no such login")
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return begun{}, bad
	}
	for _, key := range keys {
		box, err := boxOf(key)
		if err != nil {
			return begun{}, err
		}
		plain, err := box.Open(nil, nil, sealed, nil)
		if err != nil {
			continue
		}
		parts := strings.SplitN(string(plain), " ", 4)
		if len(parts) != 4 {
			return begun{}, bad
		}
		at, err := strconv.ParseInt(parts[2], 36, 64)
		if err != nil {
			return begun{}, bad
		}
		return begun{ID: parts[0], From: parts[1], Agent: parts[3], At: time.Unix(at, 0)}, nil
	}
	return begun{}, bad
}

// boxOf is the cipher of logins: its key is made from one that is for something
// else too.
func boxOf(k registry.SigningKey) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.Secret, nil, "weir: the page of a login", 32)
	if err == nil {
		var block cipher.Block
		if block, err = aes.NewCipher(key); err == nil {
			var box cipher.AEAD
			if box, err = cipher.NewGCMWithRandomNonce(block); err == nil {
				return box, nil
			}
		}
	}
	return nil, registry.Wrap(registry.ErrUnavailable, err, "make a key of "+k.ID)
}
