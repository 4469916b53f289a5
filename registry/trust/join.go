package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// joinTries is how often a join is tried whose answer was lost on the way.
	joinTries = 3
	// joinPause is how long it waits in between.
	joinPause = 300 * time.Millisecond
)

// JoinOptions says which node joins what.
type JoinOptions struct {
	// Dir is where what is fetched is kept.
	Dir string
	// Code is what "weir tiers invite" printed on the other machine.
	Code string
	// Hosts are names and addresses that this node wants to serve under with
	// the certificate; the invitation must allow each.
	Hosts []string
	// Address is this node's own, if it becomes an equal and the other is to
	// ask it who has been revoked.
	Address string
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Joined is what a node has become.
type Joined struct {
	// Name is what it is called there.
	Name string `json:"name"`
	// Address is of the node that it has joined.
	Address string `json:"address"`
	// Expires is when the certificate would, were it not renewed.
	Expires time.Time `json:"expires"`
	// Equal says that it has the authority now too.
	Equal bool `json:"equal"`
}

// Join uses a code: it makes a key, has the node behind sign a certificate for
// it, and keeps both. A running node on the same directory uses them from the
// next connection on. The other node is known by the fingerprint in the code
// and by nothing else. Errors say what a person can do: ErrInvalid for a code
// that cannot be used, ErrDenied for one that the other node refuses,
// ErrUnavailable for a node that cannot be reached, ErrConflict if this node
// has a group of its own and would have to give it up.
func Join(ctx context.Context, o JoinOptions) (Joined, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	code, err := ParseCode(o.Code)
	if err != nil {
		return Joined{}, err
	}
	if now := o.Now(); !now.Before(code.Expires) {
		return Joined{}, registry.Errorf(registry.ErrInvalid, "the join code expired at %s (this machine's clock says %s): make another one on the other machine (weir tiers invite)", clock(code.Expires), clock(now))
	}
	d := directory(o.Dir)
	// Whether this node could keep it is found out before the code is used.
	if err := d.change(func() error { return d.mayJoin(code) }); err != nil {
		return Joined{}, err
	}
	key, request, err := newRequest()
	if err != nil {
		return Joined{}, err
	}
	req := joinRequest{Version: fileVersion, Secret: code.Secret[:], CSR: request, Time: o.Now(), Hosts: o.Hosts}
	if code.Equal {
		req.Address = o.Address
	}
	text, err := post(ctx, code, req, o.Now)
	if err != nil {
		return Joined{}, err
	}
	answer, m, err := checkJoined(text, code, key, o.Now())
	if err != nil {
		return Joined{}, registry.Wrap(registry.ErrCorrupt, err, "join "+code.Address+": what it answered cannot be used")
	}
	err = d.change(func() error {
		if err := d.mayJoin(code); err != nil {
			return err
		}
		if code.Equal {
			return d.keepAuthority(answer, code.Address)
		}
		return d.keepMember(m, "")
	})
	return Joined{Name: answer.Name, Address: code.Address, Expires: m.cert.Leaf.NotAfter, Equal: code.Equal}, err
}

// mayJoin reports why this node cannot join by a code.
func (d directory) mayJoin(code Code) error {
	own, err := d.readAuthority()
	if err != nil {
		return err
	}
	nodes, err := d.readNodes(own != nil)
	if err != nil {
		return err
	}
	if _, err := d.readJoined(); err != nil || own == nil {
		return err
	}
	ours := fingerprint(own.cert) == code.CA
	switch {
	case ours && code.Equal:
		return registry.Errorf(registry.ErrConflict, "this node is an equal of the node at %s already, or is that node", code.Address)
	case ours:
		return registry.Errorf(registry.ErrConflict, "this node has the authority that the join code is of: it needs no certificate from it")
	case code.Equal && (len(nodes.Nodes) > 0 || len(nodes.Invites) > 0 || len(own.record.Equals) > 0):
		return registry.Errorf(registry.ErrConflict, "this node has invited others itself, and as an equal of another one it would have to shut them out: join before you invite, or remove %s and have all of them join again", d.path(caFile))
	}
	return nil
}

// post sends the request to the node that the code is of. An answer that was
// lost is asked for again with the same key, which the other node allows.
func post(ctx context.Context, code Code, req joinRequest, now func() time.Time) ([]byte, error) {
	tr := transport(func(ctx context.Context, network, addr string) (net.Conn, error) {
		return dialTLS(ctx, network, addr, pinned(code, now))
	})
	defer tr.CloseIdleConnections()
	for try := 1; ; try++ {
		req.Time = now()
		body, err := json.Marshal(req)
		if err != nil {
			return nil, err
		}
		text, err := ask(ctx, client(tr), http.MethodPost, code.Address+joinPath, body)
		if err == nil {
			return text, nil
		}
		explained, final := explain(err, code)
		if final || try == joinTries || ctx.Err() != nil {
			return nil, explained
		}
		select {
		case <-time.After(joinPause):
		case <-ctx.Done():
		}
	}
}

// pinned believes the authority of a code and no other.
func pinned(code Code, now func() time.Time) *tls.Config {
	host := hostOf(code.Address)
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"http/1.1"},
		ServerName:         host,
		Time:               now,
		InsecureSkipVerify: true, // VerifyConnection checks, against the fingerprint
		VerifyConnection: func(cs tls.ConnectionState) error {
			certs := cs.PeerCertificates
			i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return fingerprint(c) == code.CA })
			if i < 0 {
				return &strangerError{shown: fingerprintText(certs[len(certs)-1])}
			}
			roots := x509.NewCertPool()
			roots.AddCert(certs[i])
			if _, r := examine(certs, roots, x509.ExtKeyUsageServerAuth, now()); r != nil {
				if r.reason == otherCA {
					return &strangerError{shown: fingerprintText(certs[0])}
				}
				return r
			}
			if err := certs[0].VerifyHostname(host); err != nil {
				return fmt.Errorf("its certificate is not for %s but for %v and %s", host, hostsOf(certs[0]), nameOf(certs[0]))
			}
			return nil
		},
	}
}

// strangerError is a server that is not the one that made the code.
type strangerError struct{ shown string }

// Error implements error.
func (e *strangerError) Error() string { return "it has an authority with the fingerprint " + e.shown }

// explain says what went wrong in words for the one who typed the code, and
// whether it is of no use to try again.
func explain(err error, code Code) (explained error, final bool) {
	var (
		wrapped  *url.Error
		stranger *strangerError
		why      *refusal
		answer   *answerError
		notTLS   tls.RecordHeaderError
		dial     *net.OpError
	)
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	at := "the node at " + code.Address
	switch {
	case errors.As(err, &stranger):
		return registry.Errorf(registry.ErrDenied, "%s is not the one that made this join code: the fingerprint of its authority is %s, and the code says %s. Either it was set up anew since, or somebody is in between; the code was not sent",
			at, stranger.shown, hex.EncodeToString(code.CA[:])), true
	case errors.As(err, &why) && why.reason == notYetValid:
		return registry.Errorf(registry.ErrInvalid, "%s: %s: set the clock of this machine", at, why.text), true
	case errors.As(err, &why) && why.reason == expired:
		return registry.Errorf(registry.ErrInvalid, "%s: its own certificate has expired, unless the clock of this machine is ahead: it expired at a time that is past by that clock", at), true
	case errors.As(err, &answer) && answer.status == http.StatusNotFound:
		return registry.Errorf(registry.ErrUnavailable, "%s lets nobody join", at), true
	case errors.As(err, &answer):
		return registry.Errorf(registry.ErrDenied, "%s refuses: %s", at, answer.Error()), true
	case errors.As(err, &notTLS) || errors.Is(err, http.ErrSchemeMismatch):
		return registry.Errorf(registry.ErrUnavailable, "%s does not speak TLS: is that the port of its tiers address?", at), true
	case errors.As(err, &dial) && dial.Op == "dial":
		return registry.Errorf(registry.ErrUnavailable, "%s cannot be reached: %v. Does weir run there, with tiers in its configuration, and may this machine connect to it?", at, err), true
	case errors.Is(err, context.DeadlineExceeded):
		return registry.Errorf(registry.ErrUnavailable, "%s does not answer in time", at), true
	}
	return registry.Errorf(registry.ErrUnavailable, "%s: %v", at, err), false
}

// checkJoined checks that an answer is what was asked for.
func checkJoined(text []byte, code Code, key *ecdsa.PrivateKey, now time.Time) (answer joinAnswer, m *member, err error) {
	if err := decodeStrictly(text, &answer); err != nil {
		return answer, nil, err
	}
	if answer.Version != fileVersion {
		return answer, nil, fmt.Errorf("version %d is not known here", answer.Version)
	}
	keyText, err := keyPEM(key)
	if err != nil {
		return answer, nil, err
	}
	m, err = parseMember(memberRecord{Name: answer.Name, Address: code.Address, CA: answer.CA, Certificate: answer.Certificate, Key: keyText})
	if err != nil {
		return answer, nil, err
	}
	leaf := m.cert.Leaf
	switch {
	case fingerprint(m.ca) != code.CA:
		return answer, nil, errors.New("another authority than the code's")
	case leaf.Subject.CommonName != answer.Name || !validName(answer.Name):
		return answer, nil, fmt.Errorf("a certificate for %q", printable(leaf.Subject.CommonName))
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		return answer, nil, fmt.Errorf("a certificate from %s to %s, and the clock says %s", clock(leaf.NotBefore), clock(leaf.NotAfter), clock(now))
	case code.Equal && answer.CAKey == "":
		return answer, nil, errors.New("no key of the authority")
	case slices.ContainsFunc(answer.Revoked, func(r revocation) bool { return !r.valid() }):
		return answer, nil, errors.New("a revocation that is not whole")
	}
	return answer, m, nil
}

// keepAuthority makes this node one that has the authority. What it would have
// needed a certificate of it for, it now issues itself.
func (d directory) keepAuthority(answer joinAnswer, address string) error {
	a, err := parseAuthority(authorityRecord{Version: fileVersion, Name: answer.Name, CA: answer.CA, Key: answer.CAKey, Equals: []string{address}})
	if err != nil {
		return err
	}
	nodes, err := d.readNodes(false)
	if err != nil {
		return err
	}
	nodes.revoke(a, answer.Revoked)
	if err := d.write(nodesFile, nodes); err != nil {
		return err
	}
	return d.write(caFile, a.record)
}

// keepMember keeps a membership, instead of an earlier one in the same group.
// With the serial of an earlier one it does so only if that is still there.
func (d directory) keepMember(m *member, instead string) error {
	have, err := d.readJoined()
	if err != nil {
		return err
	}
	r := joinedRecord{Version: fileVersion}
	replaced := false
	for _, old := range have {
		switch {
		case old.id != m.id:
			r.Joined = append(r.Joined, old.record)
		case instead != "" && serialText(old.cert.Leaf) != instead:
			return nil // joined again meanwhile
		case !replaced:
			r.Joined = append(r.Joined, m.record)
			replaced = true
		}
	}
	if !replaced {
		if instead != "" {
			return nil // given up meanwhile
		}
		r.Joined = append(r.Joined, m.record)
	}
	return d.write(joinedFile, r)
}
