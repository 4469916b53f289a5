package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
	"github.com/weir-registry/weir/registry/audit"
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
