package main

import (
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// TestEntitlementStatus: what a person reads of a node's copy says what is wrong
// with it, and what to do.
func TestEntitlementStatus(t *testing.T) {
	whole := registry.Standing{Database: "db", Version: 7, Hash: "0123456789abcdef", Records: 3, Confirmed: time.Now()}
	for name, c := range map[string]struct {
		is       entitlementStatus
		has, not []string
	}{
		"none":             {entitlementStatus{}, []string{"nobody is admitted"}, []string{"\n"}},
		"no database":      {entitlementStatus{Authority: true, Trouble: "it has not been reached: refused"}, []string{"nobody is admitted", "reached: refused"}, nil},
		"own":              {entitlementStatus{Standing: whole, Authority: true, Lag: 0.2}, []string{"version 7, 3 records, hash 0123456789ab,", "own database"}, []string{"\n", "abcdef"}},
		"own, silent":      {entitlementStatus{Standing: whole, Authority: true, Lag: 75}, []string{"does not answer", "1m15s ago"}, nil},
		"own, not reached": {entitlementStatus{Standing: whole, Authority: true, Lag: 75, Trouble: "refused"}, []string{"refused", "1m15s ago"}, []string{"does not answer"}},
		"followed":         {entitlementStatus{Standing: whole, Lag: 0.2, Following: "shield:5001"}, []string{"confirmed 200ms ago by way of shield:5001"}, []string{"\n"}},
		"alone":            {entitlementStatus{Standing: whole, Lag: 90}, []string{"1m30s ago", "no node behind can be followed"}, []string{"max_staleness"}},
		"past":             {entitlementStatus{Standing: whole, Lag: 9000, Past: true}, []string{"2h30m0s ago", "access.max_staleness", "access.past"}, nil},
		"a clock set back": {entitlementStatus{Standing: whole, Lag: 1e11, Past: true}, []string{"nobody knows", "access.past"}, nil},
		"another database": {entitlementStatus{Standing: whole, Lag: 90, Others: []string{"shield:5001"}}, []string{"not followed: shield:5001", "remove the file entitlements"}, nil},
	} {
		text := c.is.String()
		for _, want := range c.has {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q is not in\n%s", name, want, text)
			}
		}
		for _, not := range c.not {
			if strings.Contains(text, not) {
				t.Errorf("%s: %q is in\n%s", name, not, text)
			}
		}
	}
}
