package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
	"github.com/weir-registry/weir/registry/audit"
	"github.com/weir-registry/weir/registry/entitle"
)

func TestChangesOfAccountsAreAudited(t *testing.T) {
	now, addr := time.Unix(1e9, 0), netip.MustParseAddr("192.0.2.1")
	who := registry.Principal{Name: "root", UID: "u", Token: "t"}
	for _, c := range []struct {
		in   account.Event
		want audit.Event
	}{
		{account.Event{Time: now, Who: who, Addr: addr, What: "token revoke", Subject: "x", Detail: "of ci", Version: 7},
			audit.Event{Time: now, Who: "root", UID: "u", Token: "t", From: addr, Action: "token revoke", Repo: "x", Ref: "of ci", Version: 7, Decision: audit.Change}},
		{account.Event{Time: now, Who: registry.Principal{Name: "root", UID: "u", Via: "edge1"}, What: "token create", Subject: "x", Detail: "for user:root"},
			audit.Event{Time: now, Who: "root", UID: "u", Action: "token create", Repo: "x", Ref: "for user:root through edge1", Decision: audit.Change}},
		{account.Event{Time: now, Addr: addr, What: "login", Err: registry.Errorf(registry.ErrUnauthenticated, "wrong password")},
			audit.Event{Time: now, Who: "anonymous", From: addr, Action: "login", Decision: audit.Deny, Why: "wrong password"}},
		{account.Event{Time: now, What: "robot add", Err: registry.Errorf(registry.ErrUnavailable, "no answer")},
			audit.Event{Time: now, Who: "this node", Action: "robot add", Decision: audit.Fail, Why: "no answer"}},
	} {
		if got := auditOf(c.in); got != c.want {
			t.Errorf("%+v\n is %+v\nwant %+v", c.in, got, c.want)
		}
	}
}

func TestIssuersAreConfigured(t *testing.T) {
	for text, ok := range map[string]bool{
		"": true,
		"access: {oidc: [{issuer: \"https://ci.example.com\", audience: weir, rules: [{claims: {sub: \"repo:acme/*\"}, robot: ci}]}]}": true,
		"access: {oidc: [{issuer: \"http://ci.example.com\", audience: weir, rules: [{claims: {sub: \"repo:acme/*\"}, robot: ci}]}]}":  false,
	} {
		c, err := decode(text)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := c.exchange(nil, registry.NoMeter{}); (err == nil) != ok || ok && (e != nil) != (text != "") {
			t.Errorf("%s: %v %v", text, e, err)
		}
	}
}

// TestAccessIsConfigured: each key reaches what it is about, and no other.
func TestAccessIsConfigured(t *testing.T) {
	classes := map[string]func(entitle.Past) bool{
		"anonymous": func(p entitle.Past) bool { return p.Anonymous }, "pull": func(p entitle.Past) bool { return p.Pull },
		"push": func(p entitle.Past) bool { return p.Push }, "admin": func(p entitle.Past) bool { return p.Admin },
	}
	for key := range classes {
		for _, policy := range []string{"serve", "deny"} {
			other := map[string]string{"serve": "deny", "deny": "serve"}[policy]
			text := "access:\n  max_staleness: 17m\n  past:\n"
			for name := range classes {
				text += "    " + name + ": " + map[bool]string{true: policy, false: other}[name == key] + "\n"
			}
			c, err := decode(text)
			if err != nil {
				t.Fatal(err)
			}
			o := c.entitleOptions(nil)
			for name, of := range classes {
				if want := (policy == "serve") == (name == key); of(o.Past) != want {
					t.Errorf("past.%s is %s, and %s serves: %v", key, policy, name, of(o.Past))
				}
			}
			if o.MaxStaleness != 17*time.Minute || !o.Authority {
				t.Errorf("%+v", o)
			}
		}
	}
	c, err := decode("next: https://shield.example.com:5001\naudit: {file: /a/log, size: 1MiB, keep: 3, allowed: yes}")
	if err != nil {
		t.Fatal(err)
	}
	if o := c.entitleOptions(nil); o.Authority {
		t.Error("a node with others behind it takes its copy for the original")
	}
	if o := c.auditOptions(); o.File != "/a/log" || o.Size != 1<<20 || o.Keep != 3 || !o.Allowed {
		t.Errorf("%+v", o)
	}
}
