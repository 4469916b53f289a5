package trust

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/weir-registry/weir/registry"
)

// The paths that a node answers itself.
const (
	joinPath    = "/weir/v1/join"
	renewPath   = "/weir/v1/renew"
	revokedPath = "/weir/v1/revoked"
)

const (
	// maxJoin bounds a request for a certificate, in bytes.
	maxJoin = 16 << 10
	// joinTime is how long such a request may take to arrive.
	joinTime = 10 * time.Second
	// maxSkew is how far two clocks may differ: as far as certificates are
	// backdated.
	maxSkew = backdate
)

// joinRequest asks for a certificate by a code.
type joinRequest struct {
	Version int       `json:"version"`
	Secret  []byte    `json:"secret"`
	CSR     string    `json:"csr"`               // PEM
	Time    time.Time `json:"time"`              // what the joiner's clock says
	Hosts   []string  `json:"hosts,omitempty"`   // that it wants to serve under
	Address string    `json:"address,omitempty"` // an equal's own
}

// joinAnswer is a certificate, and for an equal the authority.
type joinAnswer struct {
	Version     int          `json:"version"`
	Name        string       `json:"name"`
	Certificate string       `json:"certificate"` // PEM
	CA          string       `json:"ca"`          // PEM
	CAKey       string       `json:"ca_key,omitempty"`
	Revoked     []revocation `json:"revoked,omitempty"`
}

// renewRequest asks for the next certificate, over a connection with the
// present one.
type renewRequest struct {
	Version int    `json:"version"`
	CSR     string `json:"csr"`
}

// Handler serves what nodes ask each other about trust, and passes all else
// on, but only for nodes that are admitted now: the certificate of every
// request is checked again. The rest are answered 403 with one line of text
// and lose their connection.
func (t *Trust) Handler(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil {
			t.turnAway(w, r, refuse(noCertificate, "nodes are answered over TLS only"))
			return
		}
		if r.URL.Path == joinPath {
			t.serveJoin(w, r)
			return
		}
		if refused := t.admit(r.TLS.PeerCertificates); refused != nil {
			t.turnAway(w, r, refused)
			return
		}
		t.saw(NodeOf(r))
		if old := r.TLS.PeerCertificates[0]; t.o.Now().After(old.NotAfter.Add(-old.NotAfter.Sub(old.NotBefore) / 6)) {
			// The node has another one by now, or should have: let it show that
			// before this one expires under a connection that is always in use.
			w.Header().Set("Connection", "close")
		}
		switch r.URL.Path {
		case renewPath:
			t.serveRenew(w, r)
		case revokedPath:
			t.serveRevoked(w, r)
		default:
			inner.ServeHTTP(w, r)
		}
	})
}

// turnAway answers a node that is refused.
func (t *Trust) turnAway(w http.ResponseWriter, r *http.Request, why *refusal) {
	t.refused(why, r.RemoteAddr, NodeOf(r))
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Connection", "close")
	if why.status == http.StatusTooManyRequests || why.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "2")
	}
	w.WriteHeader(why.status)
	fmt.Fprintln(w, why.text)
}

// answerJSON answers what must not be kept by anyone.
func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(v)
}

// readBody reads a request for a certificate, bounded in size and time.
func (t *Trust) readBody(w http.ResponseWriter, r *http.Request) ([]byte, *refusal) {
	if r.Method != http.MethodPost {
		return nil, &refusal{http.StatusMethodNotAllowed, badRequest, "this is asked for by POST"}
	}
	// Where the deadline cannot be set the server's own has to do.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(t.bodyTime))
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxJoin))
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, badRequest, "the request is too large or did not arrive"}
	}
	return text, nil
}

// parseJoin reads a request to join. It looks at nothing but the request.
func parseJoin(text []byte) (joinRequest, *ecdsa.PublicKey, error) {
	var req joinRequest
	if err := decodeStrictly(text, &req); err != nil {
		return req, nil, err
	}
	switch {
	case req.Version != fileVersion:
		return req, nil, fmt.Errorf("version %d is not known here", req.Version)
	case len(req.Secret) != secretSize:
		return req, nil, errors.New("the secret is not as long as secrets are")
	case len(req.Hosts) > maxHosts:
		return req, nil, fmt.Errorf("more than %d hosts", maxHosts)
	case req.Time.IsZero():
		return req, nil, errors.New("no time")
	}
	for i, h := range req.Hosts {
		clean, ok := cleanHost(h)
		if !ok {
			return req, nil, errors.New("a host is neither a name nor an address")
		}
		req.Hosts[i] = clean
	}
	if req.Address != "" {
		clean, err := cleanAddress(req.Address)
		if err != nil {
			return req, nil, errors.New("the address is not that of a node")
		}
		req.Address = clean
	}
	key, err := parseRequest(req.CSR)
	return req, key, err
}

// parseRenew reads a request to renew.
func parseRenew(text []byte) (*ecdsa.PublicKey, error) {
	var req renewRequest
	if err := decodeStrictly(text, &req); err != nil {
		return nil, err
	}
	if req.Version != fileVersion {
		return nil, fmt.Errorf("version %d is not known here", req.Version)
	}
	return parseRequest(req.CSR)
}

func (t *Trust) serveJoin(w http.ResponseWriter, r *http.Request) {
	if t.files != nil {
		t.turnAway(w, r, refuse(unreadable, "this node's certificates come from elsewhere: it invites nobody"))
		return
	}
	if !t.joins.Allow() {
		t.turnAway(w, r, &refusal{http.StatusTooManyRequests, tooMany, "too many try to join at once; try again in some seconds"})
		return
	}
	text, refused := t.readBody(w, r)
	if refused != nil {
		t.turnAway(w, r, refused)
		return
	}
	req, key, err := parseJoin(text)
	if err != nil {
		t.turnAway(w, r, &refusal{http.StatusBadRequest, badRequest, "the request to join cannot be used: " + printable(err.Error())})
		return
	}
	answer, err := t.redeem(req, key)
	if !errors.As(err, &refused) && err != nil {
		t.o.Log.Error("a node could not be let in", "err", err, "addr", r.RemoteAddr)
		refused = &refusal{http.StatusServiceUnavailable, unreadable, "this node cannot let anyone in now; its log says why"}
	}
	if refused != nil {
		t.turnAway(w, r, refused)
		return
	}
	t.o.Log.Info("node joined", "node", answer.Name, "addr", r.RemoteAddr, "equal", answer.CAKey != "")
	t.saw(answer.Name)
	answerJSON(w, answer)
}

// redeem gives a certificate for a code, once. It is one change of the files,
// so that of two who come with one code the second finds it used. The same key
// may come again until the code expires: its answer may have been lost.
// Errors are a *refusal, or something is wrong here.
func (t *Trust) redeem(req joinRequest, key *ecdsa.PublicKey) (answer joinAnswer, err error) {
	hash, err := keyHash(key)
	if err != nil {
		return answer, err
	}
	err = t.change(func() error {
		own, nodes, err := t.dir.readGroup()
		if err != nil {
			return err
		}
		now := t.o.Now()
		invite, err := usable(nodes.Invites, req, hash, now)
		if err != nil {
			return err
		}
		cert, err := own.issue(invite.Name, req.Hosts, key, nodes.issueTime(own.id, invite.Name, now))
		if err != nil {
			return err
		}
		invite.Used, invite.UsedBy = now, hash
		nodes.record(cert, invite.Equal)
		answer = joinAnswer{Version: fileVersion, Name: invite.Name, Certificate: certificatePEM(cert.Raw), CA: own.record.CA}
		if invite.Equal {
			answer.CAKey, answer.Revoked = own.record.Key, nodes.Revoked
			if a := req.Address; a != "" && !slices.Contains(own.record.Equals, a) {
				own.record.Equals = append(own.record.Equals, a)
				if err := t.dir.write(caFile, own.record); err != nil {
					return err
				}
			}
		}
		return t.dir.write(nodesFile, nodes)
	})
	return answer, err
}

// readGroup is the authority and its nodes; that there is none is an error.
func (d directory) readGroup() (*authority, nodesRecord, error) {
	own, err := d.readAuthority()
	if err == nil && own == nil {
		err = registry.Errorf(registry.ErrNotFound, "this node has invited nobody yet")
	}
	if err != nil {
		return nil, nodesRecord{}, err
	}
	nodes, err := d.readNodes(true)
	return own, nodes, err
}

// usable finds the invitation of a secret and says why it cannot be used.
// Every invitation is compared, in constant time.
func usable(invites []inviteRecord, req joinRequest, key []byte, now time.Time) (*inviteRecord, error) {
	hash := sha256.Sum256(req.Secret)
	found := -1
	for i := range invites {
		if subtle.ConstantTimeCompare(hash[:], invites[i].Hash) == 1 {
			found = i
		}
	}
	if found < 0 {
		return nil, refuse(codeUnknown, "this node has not given out that join code, or long ago")
	}
	invite := &invites[found]
	again := !invite.Used.IsZero() && subtle.ConstantTimeCompare(key, invite.UsedBy) == 1
	switch skew := req.Time.Sub(now); {
	case invite.Void:
		return nil, refuse(revoked, "the join code was for %s, which has been revoked since", invite.Name)
	case !invite.Used.IsZero() && !again:
		return nil, refuse(codeUsed, "the join code was used at %s; each can be used once: make another one (weir tiers invite %s)", clock(invite.Used), invite.Name)
	case !now.Before(invite.Expires):
		return nil, refuse(codeExpired, "the join code expired at %s, and the clock there says %s: make another one (weir tiers invite %s)", clock(invite.Expires), clock(now), invite.Name)
	case skew > maxSkew || skew < -maxSkew:
		return nil, refuse(clockOff, "the clocks of the two machines differ by %v: %s here, %s there; set them right and try again, the code can still be used",
			skew.Abs().Round(time.Second), clock(req.Time), clock(now))
	}
	for _, h := range req.Hosts {
		if !slices.Contains(invite.Hosts, h) {
			return nil, refuse(hostDenied, "the invitation does not allow to serve under %s (weir tiers invite --host %s %s)", h, h, invite.Name)
		}
	}
	return invite, nil
}

// issueTime is when a certificate that is issued now counts as issued: after
// the last revocation of its name, whatever the clocks of equals say. Who comes
// so far has been invited again since.
func (n *nodesRecord) issueTime(ca, name string, now time.Time) time.Time {
	now = now.Truncate(time.Second)
	if since := indexRevoked(n.Revoked).since(ca, name); !now.After(since) {
		return since.Add(time.Second)
	}
	return now
}

// record notes a certificate. Of those the node had before, the ones that
// could still be used are kept.
func (n *nodesRecord) record(c *x509.Certificate, equal bool) {
	name := c.Subject.CommonName
	n.Nodes = slices.DeleteFunc(n.Nodes, func(r nodeRecord) bool {
		return r.Name == name && r.Expires.Before(c.NotBefore.Add(-nodeLife))
	})
	n.Nodes = append(n.Nodes, nodeRecord{Name: name, Serial: serialText(c), Issued: issuedAt(c), Expires: c.NotAfter, Hosts: hostsOf(c), Equal: equal})
}

// serveRenew gives an admitted node its next certificate, for another key and
// otherwise like the present one.
func (t *Trust) serveRenew(w http.ResponseWriter, r *http.Request) {
	text, refused := t.readBody(w, r)
	if refused == nil && t.files != nil {
		refused = refuse(unreadable, "this node's certificates come from elsewhere: it issues none")
	}
	if refused != nil {
		t.turnAway(w, r, refused)
		return
	}
	key, err := parseRenew(text)
	if err != nil {
		t.turnAway(w, r, &refusal{http.StatusBadRequest, badRequest, "the request to renew cannot be used: " + printable(err.Error())})
		return
	}
	old := r.TLS.PeerCertificates[0]
	var answer joinAnswer
	err = t.change(func() error {
		own, nodes, err := t.dir.readGroup()
		if err != nil {
			return err
		}
		if indexRevoked(nodes.Revoked).has(own.id, old) {
			return refuse(revoked, "%s has been revoked", nameOf(old))
		}
		cert, err := own.issue(nameOf(old), hostsOf(old), key, nodes.issueTime(own.id, nameOf(old), t.o.Now()))
		if err != nil {
			return err
		}
		equal := slices.ContainsFunc(nodes.Nodes, func(n nodeRecord) bool { return n.Serial == serialText(old) && n.Equal })
		nodes.record(cert, equal)
		answer = joinAnswer{Version: fileVersion, Name: nameOf(old), Certificate: certificatePEM(cert.Raw), CA: own.record.CA}
		return t.dir.write(nodesFile, nodes)
	})
	if !errors.As(err, &refused) && err != nil {
		t.o.Log.Error("a certificate could not be renewed", "err", err, "node", nameOf(old))
		refused = &refusal{http.StatusServiceUnavailable, unreadable, "this node cannot renew certificates now; its log says why"}
	}
	if refused != nil {
		t.turnAway(w, r, refused)
		return
	}
	t.o.Log.Info("certificate renewed", "node", answer.Name, "addr", r.RemoteAddr)
	answerJSON(w, answer)
}

// serveRevoked tells an admitted node who has been revoked.
func (t *Trust) serveRevoked(w http.ResponseWriter, r *http.Request) {
	s := t.current()
	if r.Method != http.MethodGet || s.own == nil {
		t.turnAway(w, r, &refusal{http.StatusNotFound, badRequest, "this node revokes nobody"})
		return
	}
	answer, err := s.own.tell(s.nodes.Revoked)
	if err != nil {
		t.o.Log.Error("revocations could not be told", "err", err)
		t.turnAway(w, r, &refusal{http.StatusServiceUnavailable, unreadable, "this node cannot tell now who has been revoked; its log says why"})
		return
	}
	answerJSON(w, answer)
}
