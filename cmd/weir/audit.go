package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
	"github.com/weir-registry/weir/registry/audit"
	"github.com/weir-registry/weir/registry/oidc"
	"github.com/weir-registry/weir/registry/ops"
)

// openAudit opens the audit log, and has the guard write to it.
func (e *entitled) openAudit(c *Config, data *dataDir, metrics *ops.Metrics) (err error) {
	if c.Audit.File == auditOff {
		e.guard = e.replica
		return nil
	}
	o := c.auditOptions()
	if o.File == "" {
		o.File = data.file("audit.log")
	}
	o.Version = func() uint64 { return e.replica.State().Version }
	o.Node, o.Log, o.Meter = hostname(), e.log, metrics
	if e.audit, err = audit.Open(o); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	e.guard = e.audit.Guard(e.replica)
	return nil
}

// auditOptions is what the configuration says about the audit log.
func (c *Config) auditOptions() audit.Options {
	return audit.Options{File: c.Audit.File, Size: int64(c.Audit.Size), Keep: c.Audit.Keep, Allowed: c.Audit.Allowed.On()}
}

// audited writes down what happens to accounts.
func (e *entitled) audited(a account.Event) { e.audit.Record(auditOf(a)) }

// auditOf is a change of accounts, or a login that was refused, as a line of the
// audit log.
func auditOf(e account.Event) audit.Event {
	a := audit.Event{Time: e.Time, Who: e.Who.Name, UID: e.Who.UID, Token: e.Who.Token, Action: e.What, Repo: e.Subject, Ref: e.Detail,
		From: e.Addr, Decision: audit.Change, Version: e.Version}
	switch {
	case e.Who.Anonymous() && e.Addr.IsValid():
		a.Who = "anonymous"
	case e.Who.Anonymous():
		a.Who = "this node"
	}
	if e.Who.Via != "" {
		a.Ref = strings.TrimSpace(a.Ref + " through " + e.Who.Via)
	}
	if e.Err == nil {
		return a
	}
	a.Why, a.Decision = e.Err.Error(), audit.Deny
	if registry.KindOf(e.Err) == registry.ErrUnavailable {
		a.Decision = audit.Fail
	}
	return a
}

// hostname is what this node is called where nodes are listed.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "this node"
	}
	return name
}

// exchange is access.oidc, nil if no issuer is configured.
func (c *Config) exchange(log *slog.Logger, meter registry.Meter) (account.Exchange, error) {
	if len(c.Access.OIDC) == 0 {
		return nil, nil
	}
	var issuers []oidc.Issuer
	for _, i := range c.Access.OIDC {
		issuer := oidc.Issuer{URL: i.Issuer, Audience: i.Audience, JWKS: i.JWKS, CA: i.CA}
		for _, r := range i.Rules {
			issuer.Rules = append(issuer.Rules, oidc.Rule{Claims: r.Claims, Robot: r.Robot, Rights: r.Rights, Lifetime: time.Duration(*r.Lifetime)})
		}
		issuers = append(issuers, issuer)
	}
	x, err := oidc.New(issuers, oidc.Options{Log: log, Meter: meter})
	if err != nil {
		return nil, fmt.Errorf("access.oidc: %w", err)
	}
	return exchange{x}, nil
}

// exchange is what JWTs stand for, as accounts want it.
type exchange struct{ *oidc.Exchange }

// Check implements account.Exchange.
func (x exchange) Check(ctx context.Context, jwt string) (account.Match, error) {
	m, err := x.Exchange.Check(ctx, jwt)
	return account.Match{Robot: m.Robot, Rights: m.Rights, Lifetime: m.Lifetime, Note: m.Issuer + " " + m.Subject}, err
}
