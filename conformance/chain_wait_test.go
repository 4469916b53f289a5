package conformance_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/wan"
	"github.com/weir-registry/weir/registry/account"
)

// TestChainWait revokes tokens with the command and has it say which nodes have
// heard: all of them, and all but one that is dead; and what a node's status says
// of those in front of it.
func TestChainWait(t *testing.T) {
	c := startPrivate(t, wan.Plan{Edges: 4, Shields: 2, Edge: wan.Shape{RTT: 40 * time.Millisecond}, Shield: wan.Shape{RTT: 40 * time.Millisecond}},
		func(u *wan.Upstream) []wan.Blob { return []wan.Blob{u.Blob(1<<10, "small")} })
	c.listed()
	out, err := c.Origin.Command("", "token", "revoke", c.token().ID, "--wait")
	t.Logf("with all nodes alive:\n%s", out)
	if err != nil {
		t.Error(err)
	}
	for _, n := range c.Nodes()[1:] {
		if !strings.Contains(out, "  "+n.Name) {
			t.Errorf("%s is not named", n.Name)
		}
	}
	status := c.Origin.MustCommand("", "status")
	t.Logf("the origin's status:\n%s", status)
	is := standingOf(t, c.Origin)
	for _, n := range c.Nodes()[1:] {
		if !slices.ContainsFunc(strings.Split(status, "\n"), func(line string) bool {
			return strings.HasPrefix(line, n.Name+" ") && strings.Contains(line, fmt.Sprintf(" %d ", is.Version)) && strings.Contains(line, is.Hash[:12])
		}) {
			t.Errorf("%s is not there with version %d and hash %.12s", n.Name, is.Version, is.Hash)
		}
	}
	c.missing(c.Edges[3], nil)
	// An edge goes on with the other shield, and is waited for there alone.
	c.missingLines(c.Shields[0], []string{c.Edges[3].Name})
}

// listed waits until the origin node knows of all others.
func (c *privateChain) listed() {
	lab.Eventually(c.t, 10*time.Second, "the origin node does not know of all nodes in front", func() error {
		status := c.Origin.MustCommand("", "status")
		for _, n := range c.Nodes()[1:] {
			if !strings.Contains(status, "\n"+n.Name+" ") {
				return fmt.Errorf("%s is not in\n%s", n.Name, status)
			}
		}
		return nil
	})
}

// die kills a node, and makes a token that the edges which live have.
func (c *privateChain) die(dead *wan.Node) (token string, live []string) {
	c.t.Helper()
	dead.Kill9()
	made := c.token()
	for _, n := range c.Nodes() {
		if !n.Running() {
			continue
		}
		live = append(live, n.Name)
		if slices.Contains(c.Edges, n) {
			if err := c.accepted(n, made.Secret); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	return made.ID, live
}

// missing kills a node, and wants it to be named as missing, with those that are
// dead already.
func (c *privateChain) missing(dead *wan.Node, also []string) {
	t := c.t
	t.Helper()
	token, _ := c.die(dead)
	_, err := c.Origin.Command("", "token", "revoke", token, "--wait", "--timeout", "1s")
	t.Logf("with %s dead: %v", dead.Name, err)
	names := strings.Join(slices.Sorted(slices.Values(append(also, dead.Name))), ", ")
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(err.Error(), "have not heard of it yet: "+names+"\n") {
		t.Errorf("the dead are not named, or the exit code is not 1: %v", err)
	}
}

// missingLines is missing with -o json.
func (c *privateChain) missingLines(dead *wan.Node, also []string) {
	t := c.t
	t.Helper()
	token, live := c.die(dead)
	out, err := c.Origin.Command("", "token", "revoke", token, "--wait", "--timeout", "5s", "-o", "json")
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("the exit code is not 1: %v", err)
	}
	var reached, without []string
	done := false
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var r account.Reached
		if err := dec.Decode(&r); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		if done = r.Done; r.Node != "" {
			reached = append(reached, r.Node)
		}
		for _, n := range r.Missing {
			without = append(without, n.Node)
		}
	}
	slices.Sort(without)
	want := slices.Sorted(slices.Values(append(also, dead.Name)))
	if !done || !slices.Equal(without, want) || len(reached) != len(live) {
		t.Errorf("reached are %v, missing %v; alive are %v\n%s", reached, without, live, out)
	}
}
