package trust

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"time"
)

const (
	// maxRevoked is how many revocations are kept and taken from others. They
	// are kept for good: if old ones were dropped, a clock that jumps ahead and
	// back would let the revoked in again.
	maxRevoked = 100_000
	// maxSerial is the longest serial number in hexadecimal.
	maxSerial = 40
)

// valid reports whether a revocation is whole.
func (r revocation) valid() bool {
	id, err := hex.DecodeString(r.CA)
	return err == nil && len(id) == sha256.Size && r.Name != "" && len(r.Name) <= 253 && len(r.Serial) <= maxSerial &&
		!r.At.IsZero() && r.At.Equal(r.At.Truncate(time.Second))
}

// revokedIndex answers whether a certificate is revoked. A nil one answers no.
type revokedIndex map[string]*revokedOf // by authority

type revokedOf struct {
	serials map[string]bool
	names   map[string]time.Time // the latest
}

func indexRevoked(list []revocation) revokedIndex {
	x := revokedIndex{}
	for _, r := range list {
		of := x[r.CA]
		if of == nil {
			of = &revokedOf{serials: map[string]bool{}, names: map[string]time.Time{}}
			x[r.CA] = of
		}
		if r.Serial != "" {
			of.serials[r.Serial] = true
		} else if r.At.After(of.names[r.Name]) {
			of.names[r.Name] = r.At
		}
	}
	return x
}

// has reports whether a certificate of an authority is revoked.
func (x revokedIndex) has(ca string, c *x509.Certificate) bool {
	of := x[ca]
	if of == nil {
		return false
	}
	return of.serials[serialText(c)] || !issuedAt(c).After(of.names[c.Subject.CommonName])
}

// since is when a name was last revoked; zero if never.
func (x revokedIndex) since(ca, name string) time.Time {
	if of := x[ca]; of != nil {
		return of.names[name]
	}
	return time.Time{}
}

// revoke adds what is not there yet and does what belongs to it: codes for a
// revoked name are void, and certificates that this node has issued to it are
// revoked by their serial numbers too, whatever its clock said when it did. An
// equal issues its certificates itself, so its name is revoked for as long as
// the authority lives. own may be nil. What was added is returned.
func (n *nodesRecord) revoke(own *authority, list []revocation) (added []revocation) {
	have := map[revocation]bool{}
	for _, r := range n.Revoked {
		have[r.key()] = true
	}
	add := func(r revocation) {
		if !have[r.key()] && len(n.Revoked) < maxRevoked {
			have[r.key()] = true
			n.Revoked = append(n.Revoked, r)
			added = append(added, r)
		}
	}
	for _, r := range list {
		before := len(added)
		add(r)
		if len(added) == before || r.Serial != "" || own == nil || r.CA != own.id {
			continue
		}
		for i := range n.Invites {
			if n.Invites[i].Name == r.Name && n.Invites[i].Used.IsZero() {
				n.Invites[i].Void = true
			}
		}
		for _, node := range n.Nodes {
			if node.Name == r.Name {
				add(revocation{CA: r.CA, Serial: node.Serial, Name: r.Name, At: r.At})
				if node.Equal {
					add(revocation{CA: r.CA, Name: r.Name, At: own.cert.NotAfter.UTC()})
				}
			}
		}
	}
	return added
}

// key is r with a time that == compares; one serial is revoked but once.
func (r revocation) key() revocation {
	r.At = r.At.UTC()
	if r.Serial != "" {
		r.At = time.Time{}
	}
	return r
}

// revokedAnswer is what equals tell each other: the list as JSON, signed by
// the authority's key, so that a node without it cannot revoke another.
type revokedAnswer struct {
	Version   int    `json:"version"`
	CA        string `json:"ca"`
	List      []byte `json:"list"`
	Signature []byte `json:"signature"`
}

// tell signs the revocations of a's nodes.
func (a *authority) tell(list []revocation) (revokedAnswer, error) {
	own := slices.DeleteFunc(slices.Clone(list), func(r revocation) bool { return r.CA != a.id })
	text, err := json.Marshal(own)
	if err != nil {
		return revokedAnswer{}, err
	}
	sum := signed(text)
	signature, err := ecdsa.SignASN1(rand.Reader, a.key, sum[:])
	return revokedAnswer{Version: fileVersion, CA: a.id, List: text, Signature: signature}, err
}

// heard checks what a node has told against the authorities this one knows,
// and returns the revocations. Errors: it is from none of them, or not whole.
func heard(text []byte, known []*x509.Certificate) ([]revocation, error) {
	var answer revokedAnswer
	if err := decodeStrictly(text, &answer); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(known, func(c *x509.Certificate) bool { return fingerprintText(c) == answer.CA })
	if i < 0 || answer.Version != fileVersion {
		return nil, errors.New("a list of revocations of an authority that this node does not know")
	}
	key, ok := known[i].PublicKey.(*ecdsa.PublicKey)
	sum := signed(answer.List)
	if !ok || !ecdsa.VerifyASN1(key, sum[:], answer.Signature) {
		return nil, errors.New("a list of revocations that its authority has not signed")
	}
	var list []revocation
	if err := decodeStrictly(answer.List, &list); err != nil {
		return nil, err
	}
	for _, r := range list {
		if r.CA != answer.CA || !r.valid() {
			return nil, errors.New("a list of revocations with one that is not whole")
		}
	}
	return list, nil
}

// signed is what is signed: not the bare text, so that nothing else that the
// key may sign can be taken for a list.
func signed(list []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte("weir revocations\n"), list...))
}
