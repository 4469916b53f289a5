package trust

import (
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// DefaultExpiry is how long a join code can be used unless it is said.
	DefaultExpiry = time.Hour
	// maxExpiry is the longest.
	maxExpiry = 30 * 24 * time.Hour
	// keepInvites is how long invitations that cannot be used any more are
	// known, so that who tries can be told why.
	keepInvites = 30 * 24 * time.Hour
	// maxInvites bounds those that can be used.
	maxInvites = 10_000
)

// InviteOptions says whom to invite.
type InviteOptions struct {
	// Name is what the node is to be called: lower-case letters, digits, dots
	// and hyphens, at most 63.
	Name string
	// Address is where the node that joins reaches this one,
	// "https://host:port".
	Address string
	// Expires is how long the code can be used; zero: [DefaultExpiry].
	Expires time.Duration
	// Hosts are names and addresses that the joiner may serve under, with a
	// certificate of this authority. An equal needs none.
	Hosts []string
	// Equal gives the joiner the authority, key included.
	Equal bool
}

// An Invitation is a code that has been made.
type Invitation struct {
	Name    string    `json:"name"`
	Code    string    `json:"code"`
	Address string    `json:"address"`
	CA      string    `json:"ca"` // fingerprint, SHA-256, hexadecimal
	Expires time.Time `json:"expires"`
	Equal   bool      `json:"equal"`
	// Known says that a node of this name has joined already.
	Known bool `json:"known"`
}

// Invite makes a join code, and the authority if there is none yet. It works
// on the files: a node that runs on them takes the code from then on. Errors:
// ErrInvalid.
func (t *Trust) Invite(o InviteOptions) (inv Invitation, err error) {
	if t.files != nil {
		return inv, errElsewhere
	}
	if err := o.check(); err != nil {
		return inv, err
	}
	code := Code{Address: o.Address, Equal: o.Equal}
	if _, err := rand.Read(code.Secret[:]); err != nil {
		return inv, err
	}
	now := t.o.Now()
	code.Expires = now.Add(o.Expires).UTC().Truncate(time.Second)
	err = t.change(func() error {
		own, err := t.dir.ensureAuthority(now)
		if err != nil {
			return err
		}
		nodes, err := t.dir.readNodes(true)
		if err != nil {
			return err
		}
		if err := t.reserved(own, o); err != nil {
			return err
		}
		if !indexRevoked(nodes.Revoked).since(own.id, o.Name).Before(own.cert.NotAfter) {
			return registry.Errorf(registry.ErrInvalid, "%s was an equal and has been revoked for good; choose another name", o.Name)
		}
		if host := hostOf(o.Address); !slices.Contains(own.record.Hosts, host) {
			own.record.Hosts = append(own.record.Hosts, host)
			if err := t.dir.write(caFile, own.record); err != nil {
				return err
			}
		}
		code.CA = fingerprint(own.cert)
		inv = Invitation{Name: o.Name, Code: code.String(), Address: o.Address, CA: own.id, Expires: code.Expires, Equal: o.Equal,
			Known: slices.ContainsFunc(nodes.Nodes, func(n nodeRecord) bool { return n.Name == o.Name })}
		hash := sha256.Sum256(code.Secret[:])
		nodes.Invites = slices.DeleteFunc(nodes.Invites, func(i inviteRecord) bool { return now.Sub(i.Expires) > keepInvites })
		if len(nodes.Invites) >= maxInvites {
			return registry.Errorf(registry.ErrInvalid, "%d invitations are open, which is the most", maxInvites)
		}
		nodes.Invites = append(nodes.Invites, inviteRecord{Name: o.Name, Hash: hash[:], Made: now, Expires: code.Expires, Hosts: o.Hosts, Equal: o.Equal})
		return t.dir.write(nodesFile, nodes)
	})
	return inv, err
}

// check checks what can be without the files, and brings it into one form.
func (o *InviteOptions) check() error {
	if !validName(o.Name) {
		return registry.Errorf(registry.ErrInvalid, "%q is not the name of a node: lower-case letters, digits, dots and hyphens, at most 63", o.Name)
	}
	address, err := cleanAddress(o.Address)
	if err != nil {
		return registry.Errorf(registry.ErrInvalid, "%v", err)
	}
	o.Address = address
	if o.Expires == 0 {
		o.Expires = DefaultExpiry
	}
	if o.Expires < time.Second || o.Expires > maxExpiry {
		return registry.Errorf(registry.ErrInvalid, "a code can be used for a second to 30 days, not for %v", o.Expires)
	}
	if len(o.Hosts) > maxHosts {
		return registry.Errorf(registry.ErrInvalid, "more than %d hosts", maxHosts)
	}
	o.Hosts = slices.Clone(o.Hosts)
	for i, h := range o.Hosts {
		clean, ok := cleanHost(h)
		if !ok {
			return registry.Errorf(registry.ErrInvalid, "%q is neither a host's name nor its address", h)
		}
		o.Hosts[i] = clean
	}
	return nil
}

// reserved refuses names under which the joiner could pass for this node.
func (t *Trust) reserved(own *authority, o InviteOptions) error {
	taken := append(slices.Clone(t.hosts), own.record.Hosts...)
	taken = append(taken, own.record.Name, hostOf(o.Address))
	for _, h := range append([]string{o.Name}, o.Hosts...) {
		if slices.Contains(taken, h) {
			return registry.Errorf(registry.ErrInvalid, "%s is this node itself; the node that joins needs another name", h)
		}
	}
	return nil
}

// Revoked is what a revocation has cut off.
type Revoked struct {
	Name string `json:"name"`
	// Serials are the certificates known here that count no more.
	Serials []string `json:"serials"`
	// Codes is how many join codes, not used yet, are void.
	Codes int `json:"codes"`
	// Equal says that the node has the authority's key. Its name is revoked for
	// good, but it can make itself certificates of other names: only a new
	// authority shuts out one that is bent on that.
	Equal bool `json:"equal"`
}

// Revoke ends what a node is allowed, open connections included, once and for
// all certificates that it had until now; it can be invited again. A running
// node sees it with the next request, equals within seconds. elsewhere revokes
// a name that is not known here: of a node that joined through an equal.
// Errors: ErrNotFound, ErrInvalid.
func (t *Trust) Revoke(name string, elsewhere bool) (out Revoked, err error) {
	if t.files != nil {
		return out, errElsewhere
	}
	out.Name = name
	err = t.change(func() error {
		own, nodes, err := t.dir.readGroup()
		if err != nil {
			return err
		}
		if name == own.record.Name {
			return registry.Errorf(registry.ErrInvalid, "%s is this node itself", name)
		}
		now := t.o.Now()
		known := false
		for _, n := range nodes.Nodes {
			if n.Name == name {
				known = true
				out.Equal = out.Equal || n.Equal
				if now.Before(n.Expires) {
					out.Serials = append(out.Serials, n.Serial)
				}
			}
		}
		for _, i := range nodes.Invites {
			if i.Name == name {
				known = true
				if i.Used.IsZero() && !i.Void && now.Before(i.Expires) {
					out.Codes++
				}
			}
		}
		if !known && !elsewhere {
			return registry.Errorf(registry.ErrNotFound, "no node %q has been invited here; weir tiers ls shows those that have", name)
		}
		if !validName(name) {
			return registry.Errorf(registry.ErrInvalid, "%q is not the name of a node", name)
		}
		if added := nodes.revoke(own, []revocation{{CA: own.id, Name: name, At: now.UTC().Truncate(time.Second)}}); len(added) == 0 && len(nodes.Revoked) >= maxRevoked {
			return registry.Errorf(registry.ErrNoRoom, "%d revocations are kept, which is the most; a new authority is needed", maxRevoked)
		}
		return t.dir.write(nodesFile, nodes)
	})
	return out, err
}

// A Node is one line of [Trust.List].
type Node struct {
	Name    string    `json:"name"`
	Serial  string    `json:"serial,omitempty"` // hexadecimal
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires,omitzero"`
	Seen    time.Time `json:"seen,omitzero"`
	State   string    `json:"state"`
	Equal   bool      `json:"equal,omitempty"`
	Hosts   []string  `json:"hosts,omitempty"`
	Address string    `json:"address,omitempty"` // of the node that this one joined
}

// The states of nodes.
const (
	StateOK        = "ok"
	StateSoon      = "expires soon" // it should have been renewed by now
	StateExpired   = "expired"
	StateNotYet    = "not yet valid" // by this machine's clock
	StateRevoked   = "revoked"
	StateInvited   = "invited"
	StateUninvited = "invite expired"
	StateVoid      = "invite void" // its name was revoked
)

// A Listing is who may talk to whom, as one node knows it.
type Listing struct {
	// Self is this node's name in its own group; "" if it has none.
	Self string `json:"self"`
	// Nodes have been invited by this one.
	Nodes []Node `json:"nodes"`
	// Joined are memberships of this node at others.
	Joined []Node `json:"joined"`
}

// List reads the files. Nodes are in the order of their names, those invited
// last at the end of each name. Of a node's certificates the last is shown.
func (t *Trust) List() (Listing, error) {
	if t.files != nil {
		return Listing{}, errElsewhere
	}
	s := &state{}
	for _, name := range stateFiles {
		if err := t.dir.load(name, s); err != nil {
			return Listing{}, err
		}
	}
	now := t.o.Now()
	l := Listing{Nodes: []Node{}, Joined: []Node{}}
	if s.own != nil {
		l.Self = s.own.record.Name
		l.Nodes = s.listNodes(t.dir.lastSeen(), now)
	}
	for _, m := range s.joined {
		c := m.cert.Leaf
		n := Node{Name: m.record.Name, Address: m.record.Address, Serial: serialText(c), Issued: issuedAt(c), Expires: c.NotAfter, Hosts: hostsOf(c)}
		n.State = stateOf(n.Issued, n.Expires, s.revoked.has(m.id, c), now)
		l.Joined = append(l.Joined, n)
	}
	return l, nil
}

func (s *state) listNodes(seen map[string]time.Time, now time.Time) []Node {
	last := map[string]int{} // where in list
	list := []Node{}
	serials := map[string]bool{}
	if of := s.revoked[s.own.id]; of != nil {
		serials = of.serials
	}
	for _, r := range s.nodes.Nodes {
		gone := serials[r.Serial] || !r.Issued.After(s.revoked.since(s.own.id, r.Name))
		n := Node{Name: r.Name, Serial: r.Serial, Issued: r.Issued, Expires: r.Expires, Seen: seen[r.Name], Equal: r.Equal, Hosts: r.Hosts,
			State: stateOf(r.Issued, r.Expires, gone, now)}
		if r.Equal { // it issues its own since
			n.Serial, n.Expires = "", time.Time{}
			if n.State != StateRevoked {
				n.State = StateOK
			}
		}
		if i, ok := last[r.Name]; ok {
			list[i] = n
			continue
		}
		last[r.Name] = len(list)
		list = append(list, n)
	}
	for _, i := range s.nodes.Invites {
		if !i.Used.IsZero() {
			continue
		}
		n := Node{Name: i.Name, Issued: i.Made, Expires: i.Expires, Equal: i.Equal, Hosts: i.Hosts, State: StateInvited}
		if i.Void {
			n.State = StateVoid
		} else if !now.Before(i.Expires) {
			n.State = StateUninvited
		}
		list = append(list, n)
	}
	slices.SortStableFunc(list, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func stateOf(issued, expires time.Time, revoked bool, now time.Time) string {
	switch life := expires.Sub(issued); {
	case revoked:
		return StateRevoked
	case now.After(expires):
		return StateExpired
	case now.Before(issued.Add(-backdate)):
		return StateNotYet
	case now.After(issued.Add(life * 5 / 6)):
		return StateSoon
	}
	return StateOK
}
