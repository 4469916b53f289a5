package registry_test

import (
	"net/netip"
	"testing"

	"github.com/weir-registry/weir/registry"
)

func TestNetwork(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1":                "192.0.2.1/32",
		"::ffff:192.0.2.1":         "192.0.2.1/32",
		"2001:db8:1:2:3:4:5:6":     "2001:db8:1:2::/64",
		"2001:db8:1:3:3:4:5:6":     "2001:db8:1:3::/64",
		"fe80::1%eth0":             "fe80::/64",
		"2001:db8:1:2:ffff:ffff::": "2001:db8:1:2::/64",
	} {
		if got := registry.Network(netip.MustParseAddr(addr)); got != netip.MustParsePrefix(want) {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	if got := registry.Network(netip.Addr{}); got != (netip.Prefix{}) {
		t.Errorf("nowhere: %s", got)
	}
}

func TestClientAddr(t *testing.T) {
	for remote, want := range map[string]netip.Addr{
		"192.0.2.1:1000":          netip.MustParseAddr("192.0.2.1"),
		"[::ffff:192.0.2.1]:1000": netip.MustParseAddr("192.0.2.1"),
		"[2001:db8::1]:1000":      netip.MustParseAddr("2001:db8::1"),
		"192.0.2.1":               {},
		"@":                       {},
		"":                        {},
	} {
		if got := registry.ClientAddr(remote); got != want {
			t.Errorf("%q: %s, want %s", remote, got, want)
		}
	}
}
