package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
	"github.com/weir-registry/weir/registry/audit"
	"github.com/weir-registry/weir/registry/entitle"
	"github.com/weir-registry/weir/registry/gate"
	"github.com/weir-registry/weir/registry/ops"
	"github.com/weir-registry/weir/registry/relay"
	"github.com/weir-registry/weir/registry/trust"
)

// entitled is who there is and who may do what, as this node knows it, and the
// way to the one that decides: itself, or one behind it.
type entitled struct {
	replica *entitle.Replica
	guard   registry.Warden
	audit   *audit.Log // nil: none is kept
	gate    *gate.Gate
	logins  registry.Logins
	tokens  registry.Tokens

	authority *authority     // nil: a node behind has the database
	client    *relay.Client  // the way to that one; nil: there is none
	board     *relay.Board   // how the copies of nodes in front are
	front     *relay.Handler // what those ask; nil: there can be none

	next      []string // nodes behind
	anonymous *entitle.Grants
	log       *slog.Logger
	stop      context.CancelFunc
	work      sync.WaitGroup
	closers   []func() error // in the order they are closed
}

// openEntitled opens this node's copy of the entitlements, and the database or the
// way to the node that has it.
func openEntitled(c *Config, data *dataDir, log *slog.Logger, metrics *ops.Metrics, t *trust.Trust) (e *entitled, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	e = &entitled{log: log, stop: cancel, next: nodes(c.Next), board: relay.NewBoard(nil)}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
			e = nil
		}
	}()
	if e.anonymous, err = c.guard(); err != nil {
		return e, err
	}
	o := c.entitleOptions(e.anonymous)
	o.File, o.Meter, o.Log = data.file("entitlements"), metrics, log
	if e.replica, err = entitle.Open(o); err != nil {
		return e, fmt.Errorf("entitlements: %w", err)
	}
	e.closers = append(e.closers, e.replica.Close)
	if err := e.openAudit(c, data, metrics); err != nil {
		return e, err
	}
	if len(c.Next) == 0 {
		err = e.openAuthority(ctx, c, data, metrics)
	} else {
		err = e.openClient(ctx, c, metrics, t)
	}
	if err != nil {
		return e, err
	}
	e.gate = gate.New(gate.Config{Identities: e.replica, Logins: e.logins, Log: log, Meter: metrics,
		Lifetime: time.Duration(*c.Access.Bearer)})
	if c.Tiers != "" {
		o := relay.Config{Source: e.replica, Logins: e.logins, Tokens: e.tokens, Node: trust.NodeOf, Still: t.Admits, Board: e.board, Meter: metrics, Log: log}
		if e.authority != nil {
			o.Used = e.authority.used
		} else {
			o.Used = e.client.Used
		}
		e.front = relay.New(o)
	}
	metrics.Entitlements(func() (version uint64, lag time.Duration) {
		by, _ := e.replica.Stale()
		return e.replica.State().Version, by
	})
	return e, nil
}

// entitleOptions is what the configuration says about the copy.
func (c *Config) entitleOptions(anonymous *entitle.Grants) entitle.Options {
	past := c.Access.Past
	return entitle.Options{
		Anonymous:    anonymous,
		Authority:    len(c.Next) == 0,
		MaxStaleness: time.Duration(*c.Access.MaxStaleness),
		Past: entitle.Past{Anonymous: past.Anonymous.serves(), Pull: past.Pull.serves(),
			Push: past.Push.serves(), Admin: past.Admin.serves()},
	}
}

// openClient has the copy follow a node behind this one.
func (e *entitled) openClient(ctx context.Context, c *Config, metrics *ops.Metrics, t *trust.Trust) (err error) {
	e.client, err = relay.NewClient(relay.Options{Nodes: nodes(c.Next), Dial: t.Dial, Copy: e.replica, Board: e.board, Meter: metrics, Log: e.log})
	if err != nil {
		return fmt.Errorf("next: %w", err)
	}
	e.logins, e.tokens = e.client, e.client
	e.work.Go(func() { e.client.Run(ctx) })
	return nil
}

// serves reports whether a policy is to go on.
func (p Policy) serves() bool { return p == "serve" }

// behind is what nodes in front ask on their road, beside blobs and names, which
// rest answers.
func (e *entitled) behind(rest http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/weir/v1/entitlements", e.front)
	mux.Handle("/weir/v1/entitlements/", e.front)
	mux.Handle("/weir/v1/account/", e.front)
	mux.Handle("/", rest)
	return mux
}

// ready is nil once there is a copy to go by.
func (e *entitled) ready() error {
	if e.replica.State().Whole() {
		return nil
	}
	text := "it is not known yet who may do what: no whole copy of the entitlements has come"
	if e.authority != nil {
		if why := e.authority.trouble(); why != "" {
			text += "; " + why
		}
	} else if e.client.Following() == "" {
		text += "; no node behind gives one: " + strings.Join(e.next, ", ")
	}
	return errors.New(text)
}

// open reports whether everybody may pull everything of a protocol.
func (e *entitled) open(space string) func() bool {
	return func() bool { return e.replica.FullyOpen(space) }
}

// prove reports whether a repository must be shown to have what it is given: not
// where everybody may read all there is.
func (e *entitled) prove(n registry.Name) bool { return !e.replica.FullyOpen(n.Space) }

// admin is the admin API: of the node with the database alone.
func (e *entitled) admin() http.Handler {
	if e.authority == nil {
		return accountsElsewhere(e.next)
	}
	o := account.HandlerOptions{Guard: e.guard, Decide: e.replica, Header: ops.AdminHeader, Node: hostname(), State: e.replica.State, Board: e.board, Log: e.log}
	handler := sync.OnceValue(func() http.Handler { return account.Handler(e.authority.opened.Load(), o) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := e.authority.get(); err != nil {
			// To operators, at an address of theirs.
			answerAdmin(w, http.StatusServiceUnavailable, e.authority.trouble(), "it is tried every few seconds, and the node need not be started again")
			return
		}
		handler().ServeHTTP(w, r)
	})
}

// accountsElsewhere answers the admin API on a node that has others behind it,
// which know the accounts.
func accountsElsewhere(next []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answerAdmin(w, http.StatusMisdirectedRequest, "the accounts are not on this node but behind it",
			"run this on the node with the metadata database, which has no next in its configuration; behind this one is "+strings.Join(next, ", "))
	})
}

// An entitlementStatus is what a node says of its copy of the entitlements.
type entitlementStatus struct {
	registry.Standing
	// Authority reports that the database is this node's own.
	Authority bool `json:"authority"`
	// Following is the node behind that the copy is of; "": none can be followed.
	Following string `json:"following,omitempty"`
	// Lag is for how long that has not been confirmed, in seconds.
	Lag float64 `json:"lag"`
	// Past reports that access.past counts.
	Past bool `json:"past"`
	// Others are nodes behind that are not followed because they have those of
	// another database than the copy.
	Others []string `json:"others,omitempty"`
	// Trouble is why this node's own database has not been reached yet.
	Trouble string `json:"trouble,omitempty"`
}

func (e *entitled) status() entitlementStatus {
	by, past := e.replica.Stale()
	s := entitlementStatus{Standing: e.replica.State(), Authority: e.authority != nil, Lag: by.Seconds(), Past: past}
	if e.client != nil {
		s.Following, s.Others = e.client.Following(), e.client.Others()
	}
	if e.authority != nil {
		s.Trouble = e.authority.trouble()
	}
	return s
}

// answerAdmin answers as the admin API answers what it refuses.
func answerAdmin(w http.ResponseWriter, status int, text, hint string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// A client that has gone has no use for the error.
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text, "hint": hint})
}

// Close ends what runs in the background, and writes out the copy.
func (e *entitled) Close() error {
	e.stop()
	if e.front != nil {
		e.front.Close()
	}
	e.work.Wait()
	var errs []error
	for _, c := range e.closers {
		errs = append(errs, c())
	}
	if e.audit != nil {
		errs = append(errs, e.audit.Close())
	}
	return errors.Join(errs...)
}
