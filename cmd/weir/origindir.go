package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"github.com/weir-registry/weir/cachetiers"
)

// fileScheme is before "://" in an address that is a directory of this machine.
const fileScheme = "file"

// directoryOf is the directory that an address means, as file:///srv/blobs or by
// its absolute path alone; "" if it means something else.
func directoryOf(address string) (string, error) {
	if filepath.IsAbs(address) {
		return filepath.Clean(address), nil
	}
	if schemeOf(address) != fileScheme {
		return "", nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Host != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !filepath.IsAbs(u.Path) {
		return "", errors.New("file:// is followed by the absolute path of a directory, and by nothing else")
	}
	return filepath.Clean(u.Path), nil
}

// directory is a store in a directory, which no other process uses meanwhile.
type directory struct {
	*cachetiers.Disk
	lock *os.File
}

// openDirectory opens a store that may hold the only copy. The directory must be
// there: a missing one is a disk that is not mounted.
func openDirectory(path string, log *slog.Logger) (*directory, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("directory %s: %w", path, cause(err))
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is no directory", path)
	}
	lock, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("directory %s: %w", path, cause(err))
	}
	// Where there are no locks it does without.
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		lock.Close()
		return nil, fmt.Errorf("directory %s is in use by another weir, or is one of this one's disks", path)
	}
	disk, err := cachetiers.OpenDisk(path, cachetiers.DiskOptions{Durable: true, Log: log})
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &directory{disk, lock}, nil
}

// Close writes the index for the next start and gives the directory back.
func (d *directory) Close() error { return errors.Join(d.Disk.Close(), d.lock.Close()) }
