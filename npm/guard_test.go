package npm

import "testing"

// TestPassing: what is passed on leaves connections for what is kept.
func TestPassing(t *testing.T) {
	for connections, want := range map[int]int{0: 16, 1: 1, 4: 1, 8: 2, 64: 16, 400: 100} {
		u, err := NewUpstreams([]Registry{{Name: "public", URL: "http://up.test", Packages: []string{"*"}, Connections: connections}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := u.passing(); got != want {
			t.Errorf("%d of %d connections", got, connections)
		}
	}
	if none := (&Upstreams{}).passing(); none != 16 {
		t.Errorf("%d without an upstream", none)
	}
}
