package account

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/weir-registry/weir/registry"
)

// AdminFile is the name of the file with the administrator's token.
const AdminFile = "admin-token"

const (
	adminName  = "admin"
	adminRight = "admin *"
	adminNote  = "made at the start of a node, for its data directory"
	// readTime is how long it may take to read the whole database.
	readTime = 2 * time.Minute
)

// EnsureAdmin sees that whoever can read dir can administer: that there is a
// robot "admin" which is granted "admin *", and one of its tokens, or another
// that works, in dir/admin-token. The file is made readable by its owner alone,
// whole or not at all, and is left alone as long as the token in it works. A
// robot that has been disabled stays so, and there is no file then: that is how
// to do without. If nobody else may administer, though, it is enabled, so that
// a start is always a way back. ErrConflict if a user has the robot's name.
func (a *Authority) EnsureAdmin(ctx context.Context, dir string) error {
	file := filepath.Join(dir, AdminFile)
	works, err := a.adminFileWorks(ctx, file)
	if works || err != nil {
		return err
	}
	if err := a.caughtUp(ctx); err != nil {
		return err
	}
	acc, err := a.ShowAccount(ctx, "", adminName)
	if errors.Is(err, registry.ErrNotFound) {
		if acc, _, err = a.AddRobot(ctx, Actor{}, adminName); errors.Is(err, registry.ErrConflict) {
			acc, err = a.ShowAccount(ctx, "", adminName) // another node was first
		}
	}
	switch {
	case err != nil:
		return err
	case acc.Kind != registry.Robot:
		return registry.Errorf(registry.ErrConflict, "no %s can be made: %q is a user here, and not the robot that a new database begins with", AdminFile, adminName)
	case acc.Disabled:
		if others, err := a.administrators(ctx); err != nil || len(others) > 0 {
			a.o.Log.Warn("there is no working admin token: the robot is disabled", "robot", adminName, "file", file)
			return err
		}
		a.o.Log.Warn("nobody may administer: the robot is enabled again", "robot", adminName)
		if _, err := a.Enable(ctx, Actor{}, adminName); err != nil {
			return err
		}
	}
	if _, _, err := a.Grant(ctx, Actor{}, GrantSpec{To: registry.Robot + ":" + adminName, Right: adminRight}); err != nil {
		return err
	}
	t, err := a.CreateTokenFor(ctx, Actor{}, adminName, registry.TokenSpec{Note: adminNote})
	if err != nil {
		return err
	}
	if err := writeWhole(file, t.Secret+"\n"); err != nil {
		_, _, rerr := a.Revoke(ctx, Actor{}, t.ID)
		return errors.Join(registry.Wrap(registry.ErrNoRoom, err, "write "+file), rerr)
	}
	a.o.Log.Info("made an admin token", "file", file, "token", t.ID)
	return nil
}

// caughtUp waits until this node's own copy has what is in the database: at a first
// start that takes as long as it takes to read it, and a change that counts
// only after that would seem to have failed.
func (a *Authority) caughtUp(ctx context.Context) error {
	head, err := a.store.Head(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	return registry.Wrap(registry.ErrUnavailable, a.o.Replica.Wait(ctx, head), "read the metadata database for the first time")
}

// adminFileWorks reports whether the token in the file is one of the database,
// of an account that may do something. It asks the database: this node's own
// copy may not be whole yet.
func (a *Authority) adminFileWorks(ctx context.Context, file string) (bool, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, registry.Wrap(registry.ErrUnavailable, err, "read the admin token")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return false, registry.Wrap(registry.ErrUnavailable, err, "read the admin token")
	}
	secret := string(bytes.TrimSpace(text))
	if !registry.CheckTokenText(secret) {
		return false, nil
	}
	hash := registry.HashToken(secret)
	t, err := a.byHash(ctx, hash[:])
	if err != nil {
		return false, unlessNotFound(err)
	}
	acc, err := a.ShowAccount(ctx, "", t.Owner)
	if err != nil {
		return false, unlessNotFound(err)
	}
	return acc.UID == t.UID && !acc.Disabled && (t.Expires.IsZero() || a.o.Now().Before(t.Expires)), nil
}

// unlessNotFound is err, or nil if it says that something is not there.
func unlessNotFound(err error) error {
	if errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	return err
}

// writeWhole replaces a file, readable by its owner only, so that it is never
// seen half written and is there after a power cut.
func writeWhole(file, text string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".admin-token-") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), file); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
