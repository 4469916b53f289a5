package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/weir-registry/weir/registry"
)

// The files of a directory.
const (
	caFile     = "ca.json"
	nodesFile  = "nodes.json"
	joinedFile = "joined.json"
	seenFile   = "seen.json"
	lockFile   = "lock"
)

const (
	// fileVersion is the form of the files. A file of another version is not
	// guessed at.
	fileVersion = 1
	// maxFile bounds what is read of a file, in bytes.
	maxFile = 16 << 20
	// lockWait is how long a change waits for another one to be finished.
	lockWait = 5 * time.Second
	// lockPoll is how often it looks.
	lockPoll = 10 * time.Millisecond
)

// authorityRecord is ca.json.
type authorityRecord struct {
	Version int      `json:"version"`
	Name    string   `json:"name"`             // this node's, in the group
	CA      string   `json:"ca"`               // PEM
	Key     string   `json:"key"`              // PEM, PKCS #8
	Hosts   []string `json:"hosts,omitempty"`  // that this node has been advertised under
	Equals  []string `json:"equals,omitempty"` // addresses of others that have the key
}

// nodesRecord is nodes.json.
type nodesRecord struct {
	Version int            `json:"version"`
	Invites []inviteRecord `json:"invites,omitempty"`
	Nodes   []nodeRecord   `json:"nodes,omitempty"`
	Revoked []revocation   `json:"revoked,omitempty"`
}

// inviteRecord is one code that was given out. The secret is kept as its hash.
type inviteRecord struct {
	Name    string    `json:"name"`
	Hash    []byte    `json:"hash"` // SHA-256 of the secret
	Made    time.Time `json:"made"`
	Expires time.Time `json:"expires"`
	Hosts   []string  `json:"hosts,omitempty"`   // that the joiner may serve under
	Equal   bool      `json:"equal,omitempty"`   // whether it gets the authority's key
	Used    time.Time `json:"used,omitzero"`     // when it was
	UsedBy  []byte    `json:"used_by,omitempty"` // SHA-256 of the public key of who used it
	Void    bool      `json:"void,omitempty"`    // its name was revoked before it was used
}

// nodeRecord is one certificate that was issued.
type nodeRecord struct {
	Name    string    `json:"name"`
	Serial  string    `json:"serial"` // hexadecimal
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	Hosts   []string  `json:"hosts,omitempty"`
	Equal   bool      `json:"equal,omitempty"`
}

// revocation says that a certificate, or all that a name had been given up to
// a time, count no more. It is comparable; revocations are only ever added.
type revocation struct {
	CA     string    `json:"ca"`               // the authority's fingerprint, hexadecimal
	Serial string    `json:"serial,omitempty"` // of one certificate,
	Name   string    `json:"name"`             // or, without a serial, of all of this name
	At     time.Time `json:"at"`               // that were issued at or before this; UTC, whole seconds
}

// joinedRecord is joined.json.
type joinedRecord struct {
	Version int            `json:"version"`
	Joined  []memberRecord `json:"joined,omitempty"`
}

// memberRecord is this node's membership in another node's group.
type memberRecord struct {
	Name        string `json:"name"`
	Address     string `json:"address"`
	CA          string `json:"ca"`          // PEM
	Certificate string `json:"certificate"` // PEM
	Key         string `json:"key"`         // PEM, PKCS #8
}

// seenRecord is seen.json.
type seenRecord struct {
	Version int                  `json:"version"`
	Seen    map[string]time.Time `json:"seen"`
}

// directory is where the files are.
type directory string

func (d directory) path(name string) string { return filepath.Join(string(d), name) }

// read decodes a file into v, which has the field Version. A file that is not
// there is fs.ErrNotExist; any other error says which file is damaged and how.
func (d directory) read(name string, v any) error {
	f, err := os.Open(d.path(name))
	if err != nil {
		return fmt.Errorf("trust: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("trust: %w", err)
	}
	if len(text) > maxFile {
		return d.damaged(name, errors.New("it is too large"))
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return d.damaged(name, err)
	}
	if head.Version != fileVersion {
		return d.damaged(name, fmt.Errorf("its version is %d, and this weir knows only %d", head.Version, fileVersion))
	}
	if err := decodeStrictly(text, v); err != nil {
		return d.damaged(name, err)
	}
	return nil
}

func (d directory) damaged(name string, err error) error {
	return registry.Errorf(registry.ErrCorrupt, "%s cannot be used: %v; restore it, or remove the directory and join or invite anew", d.path(name), err)
}

// decodeStrictly decodes one JSON value and refuses keys it does not know and
// whatever follows.
func decodeStrictly(text []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind its end")
	}
	return nil
}

// write replaces a file, whole or not at all, also across a power cut.
func (d directory) write(name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := d.replace(name, append(text, '\n')); err != nil {
		return fmt.Errorf("trust: write %s: %w", d.path(name), err)
	}
	return nil
}

func (d directory) replace(name string, text []byte) (err error) {
	f, err := os.CreateTemp(string(d), name+".new-") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(text); err == nil {
		err = d.give(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), d.path(name)); err != nil {
		return err
	}
	dir, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// give makes a file its directory's owner's: a command that root runs must not
// leave files that the node, which runs as somebody else, cannot read.
func (d directory) give(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(string(d))
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
		return f.Chown(int(owner.Uid), int(owner.Gid))
	}
	return nil
}

// make makes the directory, with the owner of the one it is in.
func (d directory) make() error {
	if _, err := os.Stat(string(d)); err == nil {
		return nil
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("trust: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(filepath.Dir(string(d)))
	if err != nil {
		return fmt.Errorf("trust: %w", err)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
		return os.Chown(string(d), int(owner.Uid), int(owner.Gid))
	}
	return nil
}

// change runs a change of the files while no other process and no other
// goroutine runs one. The lock ends with the process, however that ends.
func (d directory) change(do func() error) error {
	if err := d.make(); err != nil {
		return err
	}
	f, err := os.OpenFile(d.path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("trust: %w", err)
	}
	defer f.Close()
	if err := d.give(f); err != nil {
		return fmt.Errorf("trust: %w", err)
	}
	for deadline := time.Now().Add(lockWait); ; time.Sleep(lockPoll) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) || time.Now().After(deadline) {
			return registry.Wrap(registry.ErrUnavailable, err, "lock "+d.path(lockFile))
		}
	}
	return do()
}

// readNodes is nodes.json. One that is missing is empty, unless there is an
// authority: it was written before that, and who is revoked is in it.
func (d directory) readNodes(authority bool) (nodesRecord, error) {
	n := nodesRecord{Version: fileVersion}
	err := d.read(nodesFile, &n)
	if errors.Is(err, fs.ErrNotExist) {
		if authority {
			return n, d.damaged(nodesFile, errors.New("it is missing, and who is revoked is in it"))
		}
		return n, nil
	}
	for _, i := range n.Invites {
		if err == nil && (len(i.Hash) != 32 || !validName(i.Name) || i.Expires.IsZero()) {
			err = d.damaged(nodesFile, fmt.Errorf("the invite of %q is not whole", i.Name))
		}
	}
	for _, r := range n.Revoked {
		if err == nil && !r.valid() {
			err = d.damaged(nodesFile, fmt.Errorf("the revocation of %q is not whole", r.Name))
		}
	}
	return n, err
}

// stamp tells whether a file has been replaced.
type stamp struct {
	mtime time.Time
	size  int64
	inode uint64
}

// stampOf is the zero stamp for a file that is not there.
func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return stamp{}, nil
	}
	if err != nil {
		return stamp{}, err
	}
	s := stamp{mtime: info.ModTime(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s, nil
}
