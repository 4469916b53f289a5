package main

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/weir-registry/weir/registry"
)

// TestUnknownNPMIsNoNotFound: a node that does not know where npm packages come
// from does not tell the nodes in front of it that there are none.
func TestUnknownNPMIsNoNotFound(t *testing.T) {
	file, dir := configFile(t, "")
	c, err := readConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	data, err := openData(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	n, err := newNode(c, data, slog.New(slog.DiscardHandler), "", errors.New("nobody has said"))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	call := registry.Call{Who: registry.Principal{Name: "edge1", Node: true}, Action: registry.Pull, Name: registry.Name{Space: npmSpace, Repo: "a"}}
	if _, _, err := n.service.Resolve(t.Context(), &call); registry.KindOf(err) != registry.ErrUnavailable {
		t.Errorf("a package: %v", err)
	}
}
