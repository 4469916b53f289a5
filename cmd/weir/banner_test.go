package main

import (
	"net"
	"os"
	"strings"
	"testing"
)

// TestHelpNamesThisMachine: what is printed for others to paste has an address
// that they can use, and says who can.
func TestHelpNamesThisMachine(t *testing.T) {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	const warning = "anyone who can reach this port can pull what access.anonymous allows: pull oci:*, pull npm:*\n"
	for _, tt := range []struct {
		ip, public string
		base       string
		open       bool
		crane      string
	}{
		{"0.0.0.0", "", "http://" + name + ":5000", true, "crane pull --insecure " + name + ":5000/docker.io/"},
		{"::", "", "http://" + name + ":5000", true, "crane pull --insecure " + name + ":5000/docker.io/"},
		{"0.0.0.0", "https://packages.example.com/", "https://packages.example.com", true, "crane pull packages.example.com/docker.io/"},
		{"192.0.2.1", "", "http://192.0.2.1:5000", true, "crane pull --insecure 192.0.2.1:5000/docker.io/"},
		{"127.0.0.1", "", "http://127.0.0.1:5000", false, "crane pull 127.0.0.1:5000/docker.io/"},
		{"::1", "", "http://[::1]:5000", false, "crane pull [::1]:5000/docker.io/"},
	} {
		c := &Config{PublicURL: tt.public}
		c.setDefaults()
		var out strings.Builder
		printHelp(&out, c, &net.TCPAddr{IP: net.ParseIP(tt.ip), Port: 5000}, true)
		printed := out.String()
		for _, want := range []string{" is serving on " + tt.base + ",", `"registry-mirrors": ["` + tt.base + `"]`, "registry " + tt.base + "/npm/\n", tt.crane} {
			if !strings.Contains(printed, want) {
				t.Errorf("%s: no %q in\n%s", tt.ip, want, printed)
			}
		}
		if !strings.Contains(printed, "\naccounts: weir user add NAME; the administrator's token is in weir-data/admin-token\n") {
			t.Errorf("%s: nothing about accounts in\n%s", tt.ip, printed)
		}
		if strings.Contains(printed, warning) != tt.open {
			t.Errorf("%s: is it said who can reach it?\n%s", tt.ip, printed)
		}
	}
}

// TestHelpNamesAllRegistries: two are shown, and the others named.
func TestHelpNamesAllRegistries(t *testing.T) {
	c := &Config{OCI: OCIConfig{Upstreams: map[string]OCIUpstream{"quay.io": {}, "ghcr.io": {}, "docker.io": {}}}}
	c.setDefaults()
	for _, want := range []string{"\nthe same for quay.io, each", ""} {
		var out strings.Builder
		printHelp(&out, c, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5000}, false)
		if got := strings.Contains(out.String(), "the same for"); got != (want != "") || !strings.Contains(out.String(), want) {
			t.Errorf("with %d upstreams it prints, wanting %q:\n%s", len(c.OCI.Upstreams), want, out.String())
		}
		delete(c.OCI.Upstreams, "quay.io")
	}
}
