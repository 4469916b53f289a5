package gate

import (
	"testing"

	"github.com/weir-registry/weir/registry"
)

// BenchmarkWho is the price of each way to say who one is.
func BenchmarkWho(b *testing.B) {
	g, a := newGate()
	made := token(b, a, "alice", registry.TokenSpec{})
	p, err := g.Who(request(here, "Bearer "+made.Secret))
	if err != nil {
		b.Fatal(err)
	}
	short, _, err := g.Issue(p, []registry.Right{{Action: registry.Pull, Space: "oci", Repo: "docker.io/library/alpine"}})
	if err != nil {
		b.Fatal(err)
	}
	for name, auth := range map[string][]string{
		"anonymous": nil, "password": {basicOf("alice", password)}, "basic token": {basicOf("token", made.Secret)},
		"bearer token": {"Bearer " + made.Secret}, "short-lived": {"Bearer " + short},
	} {
		b.Run(name, func(b *testing.B) {
			r := request(here, auth...)
			for b.Loop() {
				if _, err := g.Who(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("short-lived, unknown", func(b *testing.B) {
		for b.Loop() {
			if _, err := verify(short, a.Keys()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("issue", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := g.Issue(p, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
