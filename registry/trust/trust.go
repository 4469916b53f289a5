package trust

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/weir-registry/weir/registry"
)

// Files are certificates from elsewhere, PEM. They are read again when they
// change; a change that cannot be used is logged, and the old ones stay.
type Files struct {
	// Cert is this node's certificate and what leads to the CA, Key its key.
	Cert, Key string
	// CA is the certificates that other nodes' certificates must lead to.
	CA string
}

func (f Files) given() bool { return f != Files{} }

// Options says how a node meets others. Only Dir is needed.
type Options struct {
	// Dir is where the files are. It is made when something is to be kept.
	Dir string
	// Listen says that other nodes connect to this one: it then needs an
	// authority, which is made if there is none.
	Listen bool
	// Hosts are the names and addresses that others reach this node by; its
	// own certificate is for them, for localhost, and for what invitations
	// have advertised.
	Hosts []string
	// Files are certificates from elsewhere, instead of all that is in Dir.
	Files Files
	// Equals are addresses of nodes, "https://host:port", that are asked who
	// has been revoked, beside those in Dir.
	Equals []string
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Meter is told of nodes that are refused, revocations that cannot be
	// heard and certificates that cannot be renewed; nil: nobody.
	Meter registry.Meter
	// Log; nil: slog.Default().
	Log *slog.Logger
}

// Trust is one node's view of who may talk to whom. [Open] makes it; its
// methods may be called from any goroutine.
type Trust struct {
	o     Options
	dir   directory
	hosts []string // o.Hosts, clean, and localhost
	files *elsewhere

	mu     sync.Mutex // held while files are read again
	stamps [3]stamp   // of what state was read from; guarded by mu
	bad    [3]string  // the errors last logged, by file; guarded by mu
	state  atomic.Pointer[state]

	selfMu sync.Mutex
	self   *tls.Certificate // this node's in its own group; guarded by selfMu

	seenMu  sync.Mutex
	seen    map[string]time.Time // guarded by seenMu
	unsaved bool                 // seen differs from the file; guarded by seenMu

	vouchMu sync.Mutex
	vouches map[[sha256.Size]byte]vouch // by certificate; guarded by vouchMu

	joins    *rate.Limiter // tries to use a code
	warnings *rate.Limiter // log lines about nodes that are refused
	muted    atomic.Int64  // such lines left out since the last one

	renewals map[string]*renewal // by authority; the renewing goroutine's
	deaf     map[string]bool     // addresses whose revocations are not heard; the polling goroutine's
	tick     time.Duration       // how often Run looks
	bodyTime time.Duration       // how long a request for a certificate may take to arrive
}

// state is what is in the files. It is never changed, only replaced.
type state struct {
	own     *authority
	ownPool *x509.CertPool
	nodes   nodesRecord
	revoked revokedIndex
	joined  []*member
}

// member is this node's membership in another node's group.
type member struct {
	record memberRecord
	id     string // the authority's fingerprint
	ca     *x509.Certificate
	cert   *tls.Certificate
}

const (
	// joinRate and joinBurst bound how often codes can be tried, per second.
	joinRate, joinBurst = 3, 10
	// warnRate and warnBurst bound log lines about refused nodes, per second.
	warnRate, warnBurst = 1, 10
)

// Open reads what is in a directory, and for a node that listens makes what is
// missing. Damage of any file is an error that names it: nothing is made up in
// its place.
func Open(o Options) (*Trust, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Meter == nil {
		o.Meter = registry.NoMeter{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	t := &Trust{o: o, dir: directory(o.Dir), seen: map[string]time.Time{}, vouches: map[[sha256.Size]byte]vouch{},
		joins: rate.NewLimiter(joinRate, joinBurst), warnings: rate.NewLimiter(warnRate, warnBurst),
		renewals: map[string]*renewal{}, deaf: map[string]bool{}, tick: time.Second, bodyTime: joinTime}
	for _, h := range append(slices.Clone(o.Hosts), "localhost", "127.0.0.1", "::1") {
		clean, ok := cleanHost(h)
		if !ok {
			return nil, registry.Errorf(registry.ErrInvalid, "%q is neither a host's name nor its address", h)
		}
		if !slices.Contains(t.hosts, clean) {
			t.hosts = append(t.hosts, clean)
		}
	}
	for _, a := range o.Equals {
		if _, err := cleanAddress(a); err != nil {
			return nil, registry.Wrap(registry.ErrInvalid, err, "trust")
		}
	}
	if o.Files.given() {
		var err error
		if t.files, err = openElsewhere(o.Files, o.Log); err != nil {
			return nil, err
		}
		t.state.Store(&state{})
		return t, nil
	}
	if o.Listen {
		if err := t.needAuthority(); err != nil {
			return nil, err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &state{}
	for i := range stateFiles {
		if err := t.reload(i, s); err != nil {
			return nil, err
		}
	}
	t.state.Store(s)
	t.readSeen()
	return t, nil
}

// needAuthority makes one if there is none. If there is, nothing is written: a
// disk that can only be read is no reason not to start.
func (t *Trust) needAuthority() error {
	if own, err := t.dir.readAuthority(); err != nil || own != nil {
		return err
	}
	return t.dir.change(func() error {
		_, err := t.dir.ensureAuthority(t.o.Now())
		return err
	})
}

// stateFiles are the files that state is made of, in the order they are read.
var stateFiles = [...]string{caFile, nodesFile, joinedFile}

// reload reads one of stateFiles into s. mu is held. The stamp is taken before
// the file is read: a change in between is read twice.
func (t *Trust) reload(i int, s *state) error {
	now, err := stampOf(t.dir.path(stateFiles[i]))
	if err == nil {
		err = t.dir.load(stateFiles[i], s)
	}
	if err == nil {
		t.stamps[i] = now
	}
	return err
}

// load reads one of stateFiles into s, or leaves s as it is.
func (d directory) load(name string, s *state) error {
	switch name {
	case caFile:
		own, err := d.readAuthority()
		if err != nil {
			return err
		}
		s.own, s.ownPool = own, nil
		if own != nil {
			s.ownPool = x509.NewCertPool()
			s.ownPool.AddCert(own.cert)
		}
	case nodesFile:
		nodes, err := d.readNodes(s.own != nil)
		if err != nil {
			return err
		}
		s.nodes, s.revoked = nodes, indexRevoked(nodes.Revoked)
	default:
		joined, err := d.readJoined()
		if err != nil {
			return err
		}
		s.joined = joined
	}
	return nil
}

// readJoined is joined.json.
func (d directory) readJoined() ([]*member, error) {
	var r joinedRecord
	if err := d.read(joinedFile, &r); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var list []*member
	for _, one := range r.Joined {
		m, err := parseMember(one)
		if err != nil {
			return nil, d.damaged(joinedFile, fmt.Errorf("the membership at %q: %w", one.Address, err))
		}
		list = append(list, m)
	}
	return list, nil
}

// parseMember checks that a record is a certificate, its key, and who issued
// it. Whether it is still good is not looked at.
func parseMember(r memberRecord) (*member, error) {
	ca, err := parseCA(r.CA)
	if err != nil {
		return nil, err
	}
	leaf, err := parseCertificate(r.Certificate)
	if err != nil {
		return nil, err
	}
	if err := leaf.CheckSignatureFrom(ca); err != nil {
		return nil, err
	}
	key, err := parseKey(r.Key)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the key is not the certificate's")
	}
	if clean, err := cleanAddress(r.Address); err != nil || clean != r.Address {
		return nil, fmt.Errorf("%q is not the address of a node", r.Address)
	}
	return &member{record: r, id: fingerprintText(ca), ca: ca,
		cert: &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}}, nil
}

// current is what the files say now. While one goroutine looks whether they
// have changed the others go on with what was read last, and so do all when
// they cannot be read: who was refused stays refused.
func (t *Trust) current() *state {
	if t.files == nil && t.mu.TryLock() {
		t.refresh()
		t.mu.Unlock()
	}
	return t.state.Load()
}

// refresh reads those files again that have changed. mu is held. Of one that
// cannot be read what was read last goes on to count, and the others count as
// they are: damage of one must not hide a revocation in another.
func (t *Trust) refresh() {
	s := *t.state.Load()
	changed := false
	for i, name := range stateFiles {
		now, err := stampOf(t.dir.path(name))
		if err == nil && now == t.stamps[i] {
			continue
		}
		if err == nil {
			err = t.reload(i, &s)
		}
		if err == nil {
			t.bad[i], changed = "", true
			continue
		}
		if text := err.Error(); text != t.bad[i] {
			t.bad[i] = text
			t.o.Log.Error("who may connect is not known any more; what was read last still counts", "err", err)
			t.o.Meter.Event("trust damaged", name)
		}
	}
	if changed {
		t.state.Store(&s)
	}
}

// change changes the files and sees to it that this Trust knows.
func (t *Trust) change(do func() error) error {
	err := t.dir.change(do)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refresh()
	return err
}

// errElsewhere is why commands that need an authority of ours are refused.
var errElsewhere = registry.Errorf(registry.ErrInvalid, "this node's certificates come from elsewhere (tls.cert, tls.key and tls.ca in its configuration): whoever issues those admits and revokes nodes")

// ownCertificate is this node's certificate in its own group, which it issues
// to itself when it needs one: at the start, for new hosts, at two thirds of
// the old one's life, and when the clock has been set. It is not kept in a
// file. Errors: there is no authority; this node has been revoked in its group.
func (t *Trust) ownCertificate(s *state) (*tls.Certificate, error) {
	if s.own == nil {
		return nil, errors.New("this node has no authority")
	}
	now := t.o.Now()
	hosts := slices.Clone(t.hosts)
	for _, h := range s.own.record.Hosts {
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	t.selfMu.Lock()
	defer t.selfMu.Unlock()
	name := s.own.record.Name
	if s.revoked.since(s.own.id, name).After(time.Time{}) {
		if t.self != nil && t.self.Leaf.CheckSignatureFrom(s.own.cert) == nil {
			return t.self, nil // others refuse it, and say why
		}
		return nil, fmt.Errorf("this node, %s, has been revoked in its group", name)
	}
	if c := t.self; c != nil && !due(c.Leaf, now) && c.Leaf.Subject.CommonName == name &&
		c.Leaf.CheckSignatureFrom(s.own.cert) == nil && covers(c.Leaf, hosts) {
		return c, nil
	}
	key, _, err := newRequest()
	if err != nil {
		return nil, err
	}
	leaf, err := s.own.issue(name, hosts, key.Public(), now)
	if err != nil {
		return nil, err
	}
	// The authority goes with it: who joins knows it by its fingerprint alone.
	t.self = &tls.Certificate{Certificate: [][]byte{leaf.Raw, s.own.cert.Raw}, PrivateKey: key, Leaf: leaf}
	return t.self, nil
}

func covers(c *x509.Certificate, hosts []string) bool {
	have := append(hostsOf(c), c.Subject.CommonName)
	for _, h := range hosts {
		if !slices.Contains(have, h) {
			return false
		}
	}
	return true
}
