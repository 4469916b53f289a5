package conformance

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// TestNames checks what registry.Names promises. fresh returns an empty
// implementation for each case and closes it by t.Cleanup.
func TestNames(t *testing.T, fresh func(t *testing.T) registry.Names) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, names registry.Names)
	}{
		{"LookupUnbound", lookupUnbound},
		{"BindThenLookup", bindThenLookup},
		{"EveryFieldIsKept", everyFieldIsKept},
		{"ZeroOldMeansUnbound", zeroOldMeansUnbound},
		{"OldRevisionConflicts", oldRevisionConflicts},
		{"RevisionsNeverComeBack", revisionsNeverComeBack},
		{"ZeroNewUnbinds", zeroNewUnbinds},
		{"UnbindConflicts", unbindConflicts},
		{"NamesDoNotMix", namesDoNotMix},
		{"MalformedIsInvalid", malformedIsInvalid},
		{"ListInOrder", listInOrder},
		{"ListAfter", listAfter},
		{"ListSpace", listSpace},
		{"ListStopsEarly", listStopsEarly},
		{"ListManyWhileBinding", listManyWhileBinding},
		{"ConcurrentCounter", concurrentCounter},
		{"ConcurrentFirst", concurrentFirst},
		{"CancelledContext", cancelledContext},
		{"BindAll", bindAll},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, fresh(t)) })
	}
}

func sample(text string) registry.Binding {
	return registry.Binding{
		Descriptor: descriptorOf("", []byte(text)),
		Checked:    time.Unix(1700000000, 123456789),
		Fresh:      time.Unix(1700000060, 0),
	}
}

func tag(ref string) registry.Name {
	return registry.Name{Space: "oci", Repo: "docker.io/library/alpine", Ref: ref}
}

func mustBind(t *testing.T, names registry.Names, n registry.Name, old, b registry.Binding) registry.Binding {
	t.Helper()
	kept, err := names.Bind(context.Background(), n, old, b)
	if err != nil {
		t.Fatalf("bind %v: %v", n, err)
	}
	return kept
}

func mustLookup(t *testing.T, names registry.Names, n registry.Name) registry.Binding {
	t.Helper()
	b, err := names.Lookup(context.Background(), n)
	if err != nil {
		t.Fatalf("look up %v: %v", n, err)
	}
	return b
}

// same reports whether two bindings say the same, revisions apart and times
// compared as instants.
func same(a, b registry.Binding) bool {
	if !a.Checked.Equal(b.Checked) || !a.Fresh.Equal(b.Fresh) {
		return false
	}
	a.Checked, a.Fresh, a.Rev = b.Checked, b.Fresh, b.Rev
	return a == b
}

func wantKind(t *testing.T, err, kind error, doing string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got %v, want %v", doing, err, kind)
	}
}

func lookupUnbound(t *testing.T, names registry.Names) {
	b, err := names.Lookup(context.Background(), tag("3"))
	wantKind(t, err, registry.ErrNotFound, "look up what is not bound")
	if b != (registry.Binding{}) {
		t.Errorf("an unbound name came with %+v", b)
	}
}

func bindThenLookup(t *testing.T, names registry.Names) {
	kept := mustBind(t, names, tag("3"), registry.Binding{}, sample("a"))
	if !same(kept, sample("a")) || kept.Rev == "" {
		t.Errorf("Bind returned %+v", kept)
	}
	if got := mustLookup(t, names, tag("3")); !same(got, kept) || got.Rev != kept.Rev {
		t.Errorf("Lookup = %+v, want %+v", got, kept)
	}
}

func everyFieldIsKept(t *testing.T, names registry.Names) {
	long := strings.Repeat("v", 5000)
	for i, b := range []registry.Binding{
		sample("all"),
		{Descriptor: registry.Descriptor{Digest: descriptorOf("sha512", []byte("x")).Digest, Size: -1}},
		{Descriptor: registry.Descriptor{Digest: descriptorOf("sha1", []byte("x")).Digest, Size: 1 << 40, MediaType: "application/x-züge; q=\"1\""}},
		{Descriptor: descriptorOf("sha384", nil), Listed: true},
		{Descriptor: descriptorOf("", []byte("v")), Validator: `W/"` + long + `"`, Location: "http://127.0.0.1:1/" + long},
		{Descriptor: descriptorOf("", []byte("t")), Checked: time.Unix(-5, 999999999), Fresh: time.Date(9999, 12, 31, 23, 59, 59, 1, time.UTC)},
		{Descriptor: descriptorOf("", []byte("t")), Checked: time.Unix(0, 0), Fresh: time.Time{}},
		{Descriptor: descriptorOf("", []byte("t")), Checked: time.Now(), Fresh: time.Now().Add(time.Minute), Listed: true, Validator: "\x00", Location: " "},
	} {
		n := tag(strconv.Itoa(i))
		kept := mustBind(t, names, n, registry.Binding{}, b)
		got := mustLookup(t, names, n)
		if !same(kept, b) || !same(got, b) {
			t.Errorf("%d: bound %+v, kept %+v, found %+v", i, b, kept, got)
		}
		if got.Fresh.IsZero() != b.Fresh.IsZero() || got.Checked.IsZero() != b.Checked.IsZero() {
			t.Errorf("%d: zero times did not stay zero, or others became it", i)
		}
	}
}

func zeroOldMeansUnbound(t *testing.T, names registry.Names) {
	mustBind(t, names, tag("3"), registry.Binding{}, sample("a"))
	_, err := names.Bind(context.Background(), tag("3"), registry.Binding{}, sample("b"))
	wantKind(t, err, registry.ErrConflict, "bind a bound name with a zero old")
	if got := mustLookup(t, names, tag("3")); !same(got, sample("a")) {
		t.Errorf("a failed Bind left %+v", got)
	}
}

func oldRevisionConflicts(t *testing.T, names registry.Names) {
	first := mustBind(t, names, tag("3"), registry.Binding{}, sample("a"))
	second := mustBind(t, names, tag("3"), first, sample("b"))
	if second.Rev == first.Rev {
		t.Fatal("two bindings of a name have one revision")
	}
	_, err := names.Bind(context.Background(), tag("3"), first, sample("c"))
	wantKind(t, err, registry.ErrConflict, "bind with the revision before last")
	unbound := sample("a")
	unbound.Rev = first.Rev
	_, err = names.Bind(context.Background(), tag("other"), unbound, sample("c"))
	wantKind(t, err, registry.ErrConflict, "bind an unbound name with a revision")
	// Only the revision is compared.
	mustBind(t, names, tag("3"), registry.Binding{Rev: second.Rev}, sample("d"))
}

func revisionsNeverComeBack(t *testing.T, names registry.Names) {
	seen := map[string]bool{}
	for range 3 {
		b := mustBind(t, names, tag("3"), registry.Binding{}, sample("a"))
		if seen[b.Rev] {
			t.Fatalf("revision %q was given twice", b.Rev)
		}
		seen[b.Rev] = true
		mustBind(t, names, tag("3"), b, registry.Binding{})
		_, err := names.Bind(context.Background(), tag("3"), b, sample("a"))
		wantKind(t, err, registry.ErrConflict, "bind with the revision of what was unbound")
	}
}

func zeroNewUnbinds(t *testing.T, names registry.Names) {
	b := mustBind(t, names, tag("3"), registry.Binding{}, sample("a"))
	kept := mustBind(t, names, tag("3"), b, registry.Binding{})
	if !kept.Zero() {
		t.Errorf("unbinding returned %+v", kept)
	}
	_, err := names.Lookup(context.Background(), tag("3"))
	wantKind(t, err, registry.ErrNotFound, "look up what was unbound")
	mustBind(t, names, tag("3"), registry.Binding{}, registry.Binding{}) // it is not bound, as old says
	for n := range names.List(context.Background(), "oci", "", "") {
		t.Errorf("%v is listed although unbound", n)
	}
}

func unbindConflicts(t *testing.T, names registry.Names) {
	first := mustBind(t, names, tag("3"), registry.Binding{}, sample("a"))
	mustBind(t, names, tag("3"), first, sample("b"))
	_, err := names.Bind(context.Background(), tag("3"), first, registry.Binding{})
	wantKind(t, err, registry.ErrConflict, "unbind with an old revision")
	_, err = names.Bind(context.Background(), tag("3"), registry.Binding{}, registry.Binding{})
	wantKind(t, err, registry.ErrConflict, "unbind a bound name with a zero old")
	if got := mustLookup(t, names, tag("3")); !same(got, sample("b")) {
		t.Errorf("a failed unbinding left %+v", got)
	}
}

func namesDoNotMix(t *testing.T, names registry.Names) {
	// Pairs that meet if an implementation glues the parts together.
	all := []registry.Name{
		{Space: "oci", Repo: "a", Ref: "b/c"}, {Space: "oci", Repo: "a/b", Ref: "c"}, {Space: "oci", Repo: "a/b/c", Ref: ""},
		{Space: "npm", Repo: "a", Ref: "b/c"}, {Space: "npm", Repo: "a", Ref: ""}, {Space: "npm", Repo: "A", Ref: ""},
		{Space: "oci", Repo: "a:b", Ref: "c"}, {Space: "oci", Repo: "a", Ref: "b:c"}, {Space: "oci", Repo: "a ", Ref: " b"},
		{Space: "oc", Repo: "ia", Ref: "b/c"},
	}
	for i, n := range all {
		mustBind(t, names, n, registry.Binding{}, sample(strconv.Itoa(i)))
	}
	for i, n := range all {
		if got := mustLookup(t, names, n); !same(got, sample(strconv.Itoa(i))) {
			t.Errorf("%q stands for what another name was bound to", n)
		}
	}
}

func malformedIsInvalid(t *testing.T, names registry.Names) {
	ctx := context.Background()
	for _, n := range []registry.Name{
		{}, {Space: "oci"}, {Repo: "a", Ref: "b"},
		{Space: "oci", Repo: "a\x00b", Ref: "c"}, {Space: "oci", Repo: "a", Ref: "b\x00c"},
		{Space: "oci", Repo: strings.Repeat("a", 1<<16), Ref: "b"},
	} {
		_, err := names.Bind(ctx, n, registry.Binding{}, sample("a"))
		wantKind(t, err, registry.ErrInvalid, fmt.Sprintf("bind %.40q", n))
		if _, err := names.Lookup(ctx, n); err == nil {
			t.Errorf("%.40q is bound", n)
		}
	}
	bad := sample("a")
	bad.Digest = "sha256:../../etc/passwd"
	_, err := names.Bind(ctx, tag("3"), registry.Binding{}, bad)
	wantKind(t, err, registry.ErrInvalid, "bind to a malformed digest")
}

// collect lists and stops the test on an error.
func collect(t *testing.T, names registry.Names, space, repo, after string) []registry.Name {
	t.Helper()
	var got []registry.Name
	for n, err := range names.List(context.Background(), space, repo, after) {
		if err != nil {
			t.Fatalf("list %q %q after %q: %v", space, repo, after, err)
		}
		got = append(got, n)
	}
	return got
}

func wantNames(t *testing.T, got []registry.Name, want ...registry.Name) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("listed %v, want %v", got, want)
	}
}

func listInOrder(t *testing.T, names registry.Names) {
	for _, ref := range []string{"b", "a", "a0", "B", "", "a/b", "é", "latest"} {
		mustBind(t, names, tag(ref), registry.Binding{}, sample(ref))
	}
	other := tag("x")
	other.Repo += "2"
	mustBind(t, names, other, registry.Binding{}, sample("x"))
	other.Repo = "docker.io/library/alpin"
	mustBind(t, names, other, registry.Binding{}, sample("x"))
	wantNames(t, collect(t, names, "oci", tag("").Repo, ""),
		tag(""), tag("B"), tag("a"), tag("a/b"), tag("a0"), tag("b"), tag("latest"), tag("é"))
	wantNames(t, collect(t, names, "npm", tag("").Repo, ""))
	wantNames(t, collect(t, names, "oci", "docker.io/library", ""))
}

func listAfter(t *testing.T, names registry.Names) {
	for _, ref := range []string{"a", "b", "b.1", "c"} {
		mustBind(t, names, tag(ref), registry.Binding{}, sample(ref))
	}
	repo := tag("").Repo
	wantNames(t, collect(t, names, "oci", repo, "a"), tag("b"), tag("b.1"), tag("c"))
	wantNames(t, collect(t, names, "oci", repo, "aa"), tag("b"), tag("b.1"), tag("c"))
	wantNames(t, collect(t, names, "oci", repo, "b"), tag("b.1"), tag("c"))
	wantNames(t, collect(t, names, "oci", repo, "c"))
	wantNames(t, collect(t, names, "oci", repo, "zz"))
}

func listSpace(t *testing.T, names registry.Names) {
	in := func(repo, ref string) registry.Name { return registry.Name{Space: "npm", Repo: repo, Ref: ref} }
	for _, n := range []registry.Name{in("b", "1"), in("a!", "0"), in("a", "~"), in("a", ""), in("@s/p", "x"), tag("z")} {
		mustBind(t, names, n, registry.Binding{}, sample(n.String()))
	}
	wantNames(t, collect(t, names, "npm", "", ""), in("@s/p", "x"), in("a", ""), in("a", "~"), in("a!", "0"), in("b", "1"))
	// Without a repository, "after" is a repository: where a catalog goes on.
	wantNames(t, collect(t, names, "npm", "", "a"), in("a!", "0"), in("b", "1"))
	wantNames(t, collect(t, names, "none", "", ""))
}

func listStopsEarly(t *testing.T, names registry.Names) {
	for i := range 10 {
		mustBind(t, names, tag(strconv.Itoa(i)), registry.Binding{}, sample("a"))
	}
	for range names.List(context.Background(), "oci", "", "") {
		break
	}
	mustBind(t, names, tag("later"), registry.Binding{}, sample("a")) // nothing is held
}

// listManyWhileBinding walks more names than any implementation reads at once
// and binds from within the loop: a walk must hold nothing that a Bind needs,
// and must give every name once that is bound throughout.
func listManyWhileBinding(t *testing.T, names registry.Names) {
	const many = 1500
	for i := range many {
		mustBind(t, names, tag(fmt.Sprintf("%05d", i)), registry.Binding{}, sample("a"))
	}
	seen := 0
	for n, err := range names.List(context.Background(), "oci", tag("").Repo, "") {
		if err != nil {
			t.Fatal(err)
		}
		if n.Ref >= "a" {
			continue // bound below
		}
		if want := fmt.Sprintf("%05d", seen); n.Ref != want {
			t.Fatalf("listed %q, want %q", n.Ref, want)
		}
		if seen++; seen%500 == 0 {
			mustBind(t, names, tag("added-"+n.Ref), registry.Binding{}, sample("b"))
		}
	}
	if seen != many {
		t.Errorf("listed %d names, want %d", seen, many)
	}
}

// concurrentCounter has many goroutines add to one number that is kept as a
// binding's size; compare-and-swap loses none of them.
func concurrentCounter(t *testing.T, names registry.Names) {
	const workers, rounds = 8, 40
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for range rounds {
				for {
					old, err := names.Lookup(context.Background(), tag("n"))
					if err != nil && !errors.Is(err, registry.ErrNotFound) {
						t.Error(err)
						return
					}
					next := sample("n")
					next.Size = old.Size + 1
					if _, err = names.Bind(context.Background(), tag("n"), old, next); err == nil {
						break
					}
					if !errors.Is(err, registry.ErrConflict) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	group.Wait()
	if got := mustLookup(t, names, tag("n")).Size; got != workers*rounds {
		t.Errorf("counted to %d, want %d", got, workers*rounds)
	}
}

// concurrentFirst has many goroutines bind one unbound name; one wins.
func concurrentFirst(t *testing.T, names registry.Names) {
	var group sync.WaitGroup
	won := make(chan string, 16)
	for i := range cap(won) {
		group.Go(func() {
			b, err := names.Bind(context.Background(), tag("n"), registry.Binding{}, sample(strconv.Itoa(i)))
			if err == nil {
				won <- b.Rev
			} else if !errors.Is(err, registry.ErrConflict) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(won) != 1 {
		t.Fatalf("%d of %d won", len(won), cap(won))
	}
	if got := mustLookup(t, names, tag("n")).Rev; got != <-won {
		t.Error("the binding kept is not the winner's")
	}
}

func cancelledContext(t *testing.T, names registry.Names) {
	mustBind(t, names, tag("3"), registry.Binding{}, sample("a"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, err := range names.List(ctx, "oci", "", "") {
		if err == nil {
			t.Error("a walk goes on after its context is done")
		}
	}
	if _, err := names.Bind(ctx, tag("4"), registry.Binding{}, sample("b")); err == nil {
		t.Error("a Bind whose context is done succeeded")
	}
}

// bindAll checks a registry.ManyNames; what is none has nothing to show.
func bindAll(t *testing.T, names registry.Names) {
	many, ok := names.(registry.ManyNames)
	if !ok {
		return
	}
	bound := mustBind(t, names, tag("moved"), registry.Binding{}, sample("before"))
	mustBind(t, names, tag("taken"), registry.Binding{}, sample("theirs"))
	gone := mustBind(t, names, tag("gone"), registry.Binding{}, sample("gone"))
	changes := []registry.Change{
		{Name: tag("new"), New: sample("new")},
		{Name: tag("taken"), New: sample("ours")}, // in conflict: it is bound
		{Name: tag("moved"), Old: bound, New: sample("after")},
		{Name: tag("gone"), Old: gone},
	}
	if err := many.BindAll(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
	for ref, text := range map[string]string{"new": "new", "taken": "theirs", "moved": "after"} {
		if got := mustLookup(t, names, tag(ref)); got.Digest != sample(text).Digest || got.Rev == "" {
			t.Errorf("%s is bound to %+v, want %s", ref, got, text)
		}
	}
	_, err := names.Lookup(t.Context(), tag("gone"))
	wantKind(t, err, registry.ErrNotFound, "look up what was unbound with others")
	if err := many.BindAll(t.Context(), nil); err != nil {
		t.Errorf("no changes: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantKind(t, many.BindAll(ctx, changes), registry.ErrUnavailable, "bind with a cancelled context")
	wantKind(t, many.BindAll(t.Context(), []registry.Change{{New: sample("nobody")}}), registry.ErrInvalid, "bind no name among others")
}
