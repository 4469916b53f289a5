package account

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// faulty is an authority whose database fails a quarter of the time: before or
// after it has done what was asked, or long after it said that it had failed.
func faulty(t *testing.T, seed uint64) (*lab, *conformance.FaultyMetadata) {
	var broken *conformance.FaultyMetadata
	l := newLab(t)
	broken = &conformance.FaultyMetadata{Metadata: l.db, Delay: 3 * time.Millisecond}
	l.store = store{broken}
	broken.Choose = conformance.RandomFaults(seed, 25)
	t.Cleanup(broken.Wait)
	return l, broken
}

// What is said to be done is done, and once, however the database answers.
func TestChangesSurviveADatabaseThatFails(t *testing.T) {
	for seed := range uint64(3) {
		l, broken := faulty(t, seed)
		ctx := t.Context()
		said, failed := 0, 0
		for i := range 40 {
			name := fmt.Sprint("robot", i)
			acc, version, err := l.AddRobot(ctx, root, name)
			if err != nil {
				if errors.Is(err, registry.ErrConflict) {
					t.Errorf("%s: in conflict with itself: %v", name, err)
				}
				l.fails(err, registry.ErrUnavailable)
				failed++
				continue
			}
			said++
			broken.Wait() // what the database does late must change nothing
			now, ok := l.replica.Account(name)
			rec, _ := l.db.Get(ctx, accountPrefix+name)
			if !ok || now.UID != acc.UID || rec.Rev != version {
				t.Errorf("%s is %+v at %d; said were %+v at %d", name, now, rec.Rev, acc, version)
			}
			at, err := l.Disable(ctx, root, name)
			if broken.Wait(); err == nil {
				if now, _ := l.replica.Account(name); !now.Disabled || at <= version {
					t.Errorf("%s was said to be disabled at %d, and is %+v", name, at, now)
				}
			}
			if i%2 == 0 {
				continue
			}
			at, err = l.RemoveAccount(ctx, root, registry.Robot, name)
			if broken.Wait(); err == nil {
				if now, ok := l.replica.Account(name); ok {
					t.Errorf("%s was said to be removed, and is %+v", name, now)
				}
				l.removedAt(accountPrefix+name, at)
			}
		}
		if failed > said {
			t.Errorf("seed %d: %d changes failed, %d were made: a quarter of failures should be got over", seed, failed, said)
		}
	}
}

// removedAt wants the version of a removal to be that of the change itself.
func (l *lab) removedAt(key string, version uint64) {
	l.t.Helper()
	for rec, err := range l.db.Changes(context.Background(), version-1) {
		if l.must(err); rec.Key != key || rec.Value != nil {
			l.t.Errorf("change %d is %+v, and not the removal of %s", version, rec, key)
		}
		return
	}
	l.t.Errorf("there is no change %d", version)
}

func TestTokensOfADatabaseThatFailsWork(t *testing.T) {
	l, broken := faulty(t, 7)
	broken.Choose = nil
	l.robot("ci")
	broken.Choose = conformance.RandomFaults(7, 25)
	made := 0
	for range 60 {
		nt, err := l.CreateTokenFor(t.Context(), root, "ci", registry.TokenSpec{})
		if err != nil {
			l.fails(err, registry.ErrUnavailable)
			continue
		}
		made++
		broken.Wait()
		if p, err := l.replica.Token(nt.Secret, here); err != nil || p.Token != nt.ID {
			t.Errorf("a token that was made is %+v, %v", p, err)
		}
		_, _, err = l.Revoke(t.Context(), root, nt.ID)
		if broken.Wait(); err == nil {
			if p, err := l.replica.Token(nt.Secret, here); err == nil {
				t.Errorf("a revoked token is %+v", p)
			}
		}
	}
	if made < 20 {
		t.Errorf("only %d of 60 were made", made)
	}
}

// A write that arrives after its answer was given up does not undo what came
// after it.
func TestALateWriteUndoesNothing(t *testing.T) {
	l := newLab(t)
	l.user("alice")
	broken := &conformance.FaultyMetadata{Metadata: l.db, Delay: 20 * time.Millisecond}
	puts := 0
	broken.Choose = func(op, key string) conformance.MetadataFault {
		if op != "Put" {
			return conformance.Sound
		}
		if puts++; puts == 1 {
			return conformance.Afterwards
		}
		return conformance.Sound
	}
	l.store = store{broken}
	_, err := l.Disable(t.Context(), root, "alice")
	l.must(err)
	_, err = l.Enable(t.Context(), root, "alice")
	l.must(err)
	broken.Wait()
	if acc, _ := l.replica.Account("alice"); acc.Disabled {
		t.Error("what came late was done again")
	}
}

func TestChangesAtOnceAreAllMade(t *testing.T) {
	l := newLab(t)
	l.robot("ci")
	var wg sync.WaitGroup
	for i := range 8 {
		_, _, err := l.AddTeam(t.Context(), root, fmt.Sprint("team", i))
		l.must(err)
		wg.Go(func() {
			if _, err := l.AddMember(t.Context(), root, fmt.Sprint("team", i), "ci"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if acc, _ := l.replica.Account("ci"); len(acc.Teams) != 8 {
		t.Errorf("it is in %d teams of 8", len(acc.Teams))
	}
}

func TestADatabaseThatIsGoneIsSaidSo(t *testing.T) {
	l := newLab(t)
	l.user("alice")
	l.store = store{&conformance.FaultyMetadata{Metadata: l.db, Choose: func(string, string) conformance.MetadataFault { return conformance.Refused }}}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := l.Disable(ctx, root, "alice")
	l.fails(err, registry.ErrUnavailable)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	_, err = l.Password(t.Context(), "alice", secretPassword, here)
	l.fails(err, registry.ErrUnavailable)
	// That it could not be decided costs no guess.
	if n := failing(l.guesses, "alice", here, l.now()); n != accountBurst {
		t.Errorf("%d guesses are left, want %d", n, accountBurst)
	}
}

func TestALoginIsClaimedByTheOneWhoseAnswerWasLost(t *testing.T) {
	for _, fault := range []conformance.MetadataFault{conformance.Refused, conformance.Lost, conformance.Late, conformance.Afterwards} {
		l := newLab(t)
		alice := principal(l.user("alice"))
		id, err := l.Begin(t.Context(), here)
		l.must(err)
		l.must(l.Approve(t.Context(), id, alice))
		broken := &conformance.FaultyMetadata{Metadata: l.db, Delay: 3 * time.Millisecond}
		puts := 0
		broken.Choose = func(op, key string) conformance.MetadataFault {
			if op == "Put" && key == loginPrefix+id {
				if puts++; puts == 1 {
					return fault
				}
			}
			return conformance.Sound
		}
		l.store = store{broken}
		if nt, err := l.Claim(t.Context(), id, here); err != nil || nt.Owner != "alice" {
			t.Errorf("fault %d: %+v, %v", fault, nt, err)
		}
		broken.Wait()
	}
}
