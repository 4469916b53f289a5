package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
	"github.com/weir-registry/weir/registry/entitle"
	"github.com/weir-registry/weir/registry/names"
	"github.com/weir-registry/weir/registry/ops"
)

const (
	// accountsTime is how long a start waits for the metadata database.
	accountsTime = 30 * time.Second
	// usesEvery is how often what this node's copy knows of tokens' uses is
	// passed on.
	usesEvery = 5 * time.Second
)

// accounts are the authority over accounts on the node that has the metadata
// database, with its copy of the entitlements.
type accounts struct {
	db        registry.Metadata
	closer    io.Closer // of db
	replica   *entitle.Replica
	authority *account.Authority

	stop context.CancelFunc
	work sync.WaitGroup
}

// accountsOptions are for openAccounts.
type accountsOptions struct {
	Anonymous *entitle.Grants     // from the configuration
	Exchange  account.Exchange    // nil: none
	Audit     func(account.Event) // nil: nobody is told
	Meter     registry.Meter
	Log       *slog.Logger
}

// openAccounts opens the metadata database in the data directory and what works
// on it, and sees that there is an administrator's token.
func openAccounts(data *dataDir, o accountsOptions) (a *accounts, err error) {
	db, err := names.OpenMetadata(data.file("metadata.db"), names.MetadataOptions{Log: o.Log})
	if err != nil {
		return nil, fmt.Errorf("accounts: %w", err)
	}
	a = &accounts{db: db, closer: db}
	var ctx context.Context
	ctx, a.stop = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("accounts: %w", err), a.Close())
		}
	}()
	if a.replica, err = entitle.Open(entitle.Options{Anonymous: o.Anonymous, Authority: true, Meter: o.Meter, Log: o.Log}); err != nil {
		return nil, err
	}
	starting, cancel := context.WithTimeout(ctx, accountsTime)
	defer cancel()
	if a.authority, err = account.Open(starting, account.Options{Metadata: a.db, Replica: a.replica, Exchange: o.Exchange,
		Audit: o.Audit, Log: o.Log, Meter: o.Meter}); err != nil {
		return nil, err
	}
	a.work.Go(func() { _ = a.replica.Follow(ctx, a.db) }) // its error is ctx's
	a.work.Go(func() { a.authority.Run(ctx) })
	a.work.Go(func() { a.passUses(ctx) })
	if err = a.authority.EnsureAdmin(starting, data.path); errors.Is(err, registry.ErrConflict) {
		o.Log.Warn("there is no administrator's token in the data directory", "err", err)
		err = nil
	}
	return a, err
}

// passUses tells the authority when tokens were used here.
func (a *accounts) passUses(ctx context.Context) {
	tick := time.NewTicker(usesEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			a.authority.Used(a.replica.Uses())
		case <-ctx.Done():
			return
		}
	}
}

// handler is the admin API. board is the nodes in front; nil: there are none.
func (a *accounts) handler(board account.Board, log *slog.Logger) http.Handler {
	host, err := os.Hostname()
	if err != nil {
		host = "this node"
	}
	return account.Handler(a.authority, account.HandlerOptions{Guard: a.replica, Header: ops.AdminHeader, Node: host, State: a.replica.State, Board: board, Log: log})
}

// Close ends what runs and closes the database.
func (a *accounts) Close() error {
	a.stop()
	a.work.Wait()
	var errs []error
	if a.replica != nil {
		errs = append(errs, a.replica.Close())
	}
	return errors.Join(append(errs, a.closer.Close())...)
}

// accountsElsewhere answers the admin API on a node that has others behind it,
// which know the accounts.
func accountsElsewhere(next []string) http.Handler {
	text, err := json.Marshal(map[string]string{
		"error": "the accounts are not on this node but behind it",
		"hint":  "run this on the node with the metadata database, which has no next in its configuration; behind this one is " + strings.Join(next, ", ")})
	if err != nil {
		panic(err) // a map of strings
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusMisdirectedRequest)
		w.Write(text)
	})
}

// newAccounts opens the accounts of a node that has none behind it.
func (n *node) newAccounts(c *Config, data *dataDir, log *slog.Logger, anonymous *entitle.Grants) (err error) {
	if len(c.Next) > 0 {
		n.accountsAPI = accountsElsewhere(nodes(c.Next))
		return nil
	}
	if n.accounts, err = openAccounts(data, accountsOptions{Anonymous: anonymous, Meter: n.metrics, Log: log}); err != nil {
		return err
	}
	n.accountsAPI = n.accounts.handler(nil, log)
	return nil
}
