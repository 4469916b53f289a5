// Package audit is an append-only log of who was refused what, of what was
// changed about accounts, and of transfers that were cut; and of every admitted
// call if that is wanted.
//
// It is a file of JSON, one event a line (see [Event]), that grows to a size and
// is then put aside as FILE.1, FILE.2 and so on, the oldest last. What clients
// have sent cannot make a line or a terminal's command of it: whatever is not a
// printable character is escaped.
//
// A request never waits for it. Events go through a queue to one goroutine that
// writes; when the disk is slow, full or read-only and the queue is full, events
// are counted instead, and the log says how many it has lost as soon as it can.
// It is complete after Close, about a second behind after a power failure, and
// after the death of the process lacks what was in the queue, but has no line
// that is not whole.
package audit

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// queueLength is how many events wait to be written at most. With all their
	// texts as long as they may be these are about 10 MiB.
	queueLength = 4096

	defaultSize = 64 << 20
	defaultKeep = 10
)

// Decisions of an [Event].
const (
	// Allow is an admitted call.
	Allow = "allow"
	// Deny is a refused one: who asked is not known, not entitled, or asked too
	// often.
	Deny = "deny"
	// Fail is one that was not admitted because nobody could decide.
	Fail = "fail"
	// Change is something that was changed: an account, a grant, a token.
	Change = "change"
	// Cut is a transfer that was ended because it was no longer allowed.
	Cut = "cut"
	// Lost is not about a call: so many events, by Count, are missing here.
	Lost = "lost"
)

// An Event is one line of the log. Its JSON is stable. Texts that are longer than
// anybody means them to be are cut, and end with "…".
type Event struct {
	Time time.Time `json:"time"`
	// Who is the account's name, or "anonymous"; UID and Token are its UID and
	// the token's ID, where there is one. An account has a UID, whatever its name.
	Who   string `json:"who,omitempty"`
	UID   string `json:"uid,omitempty"`
	Token string `json:"token,omitempty"`
	// Tier reports that another weir asked, of the name in Who, for a client that
	// it has admitted.
	Tier bool `json:"tier,omitempty"`
	// Action is what was to be done: "pull", "push" or "admin", or for what is no
	// call a few words: "login", "token revoke".
	Action string `json:"action"`
	// Repo is what it was about: "oci:docker.io/library/alpine", or another
	// object in the same form: "user:alice". Ref and Digest say it closer.
	Repo   string `json:"repo,omitempty"`
	Ref    string `json:"ref,omitempty"`
	Digest string `json:"digest,omitempty"`
	// From is the client's address, Agent what it calls itself.
	From  netip.Addr `json:"from,omitzero"`
	Agent string     `json:"agent,omitempty"`
	// Decision is one of the constants.
	Decision string `json:"decision"`
	// Why is for people.
	Why string `json:"why,omitempty"`
	// Version is that of the entitlements by which it was decided.
	Version uint64 `json:"version,omitempty"`
	// Node is the one that has written this.
	Node string `json:"node,omitempty"`
	// Count is how many events this line stands for, which are alike and of the
	// same second; the last of them is the one it shows. Of refusals that are too
	// many to have a line each they are alike in nothing but Decision and perhaps
	// From, and Why says so. None: one.
	Count int64 `json:"count,omitempty"`
}

// Options are those of [Open].
type Options struct {
	// File is where the log is. Its directory is made if it is missing.
	File string
	// Size is how long the file may get, in bytes, before it is put aside; 0:
	// 64 MiB. Only a single line that is longer makes a file longer.
	Size int64
	// Keep is how many files put aside are kept; 0: 10.
	Keep int
	// Allowed has admitted calls recorded too.
	Allowed bool
	// Node is this node's name.
	Node string
	// Version is that of the entitlements now; nil: none is recorded. It must not
	// wait.
	Version func() uint64

	Log   *slog.Logger
	Meter registry.Meter
	Now   func() time.Time

	open func(path string) (file, error) // openFile, but in tests
}

// A Log is open until Close. Its methods may be called by many at once, and those
// of a nil Log, which is none, do nothing.
type Log struct {
	o     Options
	queue chan Event
	lost  atomic.Int64

	mu     sync.RWMutex
	closed bool // guarded by mu: nothing is put into queue any more

	foldMu sync.Mutex
	folds  map[foldKey]*fold // guarded by foldMu
	spent  spending          // guarded by foldMu

	close chan struct{} // closed by Close
	done  chan struct{} // closed by the writer
	w     writer
}

// Open opens the log, or begins it. A torn last line, which a node leaves that
// lost its power, is taken away. A file that cannot be written because the disk
// is full or read-only is no error: the log begins when that ends. The caller
// closes it. Errors: ErrInvalid for Options that make no sense, ErrUnavailable if
// the file cannot be opened.
func Open(o Options) (*Log, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	l := &Log{
		o:     o,
		queue: make(chan Event, queueLength),
		folds: map[foldKey]*fold{},
		close: make(chan struct{}),
		done:  make(chan struct{}),
		w:     writer{o: o},
	}
	if err := l.w.open(); err != nil {
		if !diskTrouble(err) {
			return nil, registry.Wrap(registry.ErrUnavailable, err, "open the audit log "+o.File)
		}
		l.w.failed(err)
	}
	go l.run()
	return l, nil
}

func (o *Options) complete() error {
	switch {
	case o.File == "":
		return registry.Errorf(registry.ErrInvalid, "the audit log has no file")
	case o.Size < 0 || o.Keep < 0:
		return registry.Errorf(registry.ErrInvalid, "an audit log of %d bytes and %d files", o.Size, o.Keep)
	}
	if o.Size == 0 {
		o.Size = defaultSize
	}
	if o.Keep == 0 {
		o.Keep = defaultKeep
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.open == nil {
		o.open = openFile
	}
	return nil
}

// Close writes what is in the queue and closes the file. Events that come later
// are lost. Its error is that not all could be written.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.close)
	}
	l.mu.Unlock()
	<-l.done
	if n := l.lost.Load(); n > 0 {
		return registry.Errorf(registry.ErrNoRoom, "%d events of the audit log %s are lost", n, l.o.File)
	}
	return nil
}

// Record records an event, and fills in its Time, Version and Node if they are
// zero. A refusal without a Count may become one line with others. It does not wait.
func (l *Log) Record(e Event) {
	if l == nil {
		return
	}
	l.fill(&e)
	if (e.Decision == Deny || e.Decision == Fail) && e.Count == 0 {
		l.putFolded(foldKey{who: registryWho{e.Who, e.UID, e.Token, e.Tier}, action: registry.Action(e.Action), repo: e.Repo,
			from: e.From, decision: e.Decision}, e)
		return
	}
	l.put(e)
}

func (l *Log) fill(e *Event) {
	if e.Time.IsZero() {
		e.Time = l.o.Now()
	}
	if e.Version == 0 && l.o.Version != nil {
		e.Version = l.o.Version()
	}
	if e.Node == "" {
		e.Node = l.o.Node
	}
	for _, text := range []*string{&e.Who, &e.UID, &e.Token, &e.Action, &e.Digest, &e.Agent, &e.Ref, &e.Node} {
		*text = clip(*text, 256)
	}
	e.Repo, e.Why = clip(e.Repo, 512), clip(e.Why, 512)
}

// clip makes a text at most n bytes long, and does not keep the rest of it alive.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-len("…")], "") + "…"
}

// put queues an event, or counts it.
func (l *Log) put(e Event) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if !l.closed {
		select {
		case l.queue <- e:
			return
		default:
		}
	}
	l.lose(max(e.Count, 1))
}

func (l *Log) lose(n int64) {
	l.lost.Add(n)
	if l.o.Meter != nil {
		l.o.Meter.Event("audit events lost", "audit")
	}
}

// Guard makes a Warden that says what inner says, and has it recorded: what is
// refused, what is cut, and once for each call what is admitted, if Options say
// so. inner must be set.
func (l *Log) Guard(inner registry.Warden) registry.Warden {
	if l == nil {
		return inner
	}
	return &guard{log: l, inner: inner}
}

type guard struct {
	log   *Log
	inner registry.Warden
}

// Admit implements registry.Guard.
func (g *guard) Admit(ctx context.Context, c *registry.Call) error {
	err := g.inner.Admit(ctx, c)
	if c.Whether {
		return err
	}
	if err != nil {
		g.log.refused(c, err)
	} else if g.log.o.Allowed && last(c) {
		g.log.Record(eventOf(c, Allow, nil))
	}
	return err
}

// Watch implements registry.Warden.
func (g *guard) Watch(c *registry.Call, revoked func(error)) (stop func()) {
	return g.inner.Watch(c, func(err error) {
		revoked(err) // the log can wait
		g.log.Record(eventOf(c, Cut, err))
	})
}

// last reports whether this is a call's last admission: a pull is admitted once
// more when it is known what its name is bound to. A client may name a digest,
// but when that was checked only this side can know.
func last(c *registry.Call) bool {
	return c.Action != registry.Pull || c.Who.Node || c.Binding.Rev != "" || !c.Binding.Checked.IsZero()
}

func eventOf(c *registry.Call, decision string, why error) Event {
	e := Event{
		Who: c.Who.Name, UID: c.Who.UID, Token: c.Who.Token, Tier: c.Who.Node,
		Action: string(c.Action), Ref: c.Name.Ref, Digest: string(c.Binding.Digest),
		From: c.Addr, Agent: c.Agent, Decision: decision,
	}
	if c.Who.Anonymous() {
		e.Who = "anonymous"
	}
	if c.Name.Space != "" {
		e.Repo = c.Name.Space + ":" + c.Name.Repo
	}
	if why != nil {
		e.Why = why.Error()
	}
	return e
}
