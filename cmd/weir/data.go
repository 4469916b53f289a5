package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// dataDir is the directory of everything a node keeps, held by a lock that
// ends with the process however that ends.
type dataDir struct {
	path string
	lock *os.File
}

// openData makes the directory if need be, sees that it can be written, and
// locks it.
func openData(path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory %s cannot be made: %w", path, cause(err))
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory %s is not writable: %w", path, cause(err))
	}
	d := &dataDir{path: path, lock: lock}
	if err := d.take(); err != nil {
		lock.Close()
		return nil, err
	}
	return d, nil
}

func (d *dataDir) take() error {
	err := syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		text, _ := io.ReadAll(io.LimitReader(d.lock, 32))
		who := "another weir"
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			who = fmt.Sprintf("another weir (pid %d)", pid)
		}
		return fmt.Errorf("data directory %s is in use by %s", d.path, who)
	case err != nil:
		return fmt.Errorf("lock data directory %s: %w", d.path, err)
	}
	probe, err := os.CreateTemp(d.path, "probe-")
	if err == nil {
		probe.Close()
		err = os.Remove(probe.Name())
	}
	if err == nil {
		err = d.lock.Truncate(0)
	}
	if err == nil {
		_, err = d.lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return fmt.Errorf("data directory %s is not writable: %w", d.path, cause(err))
	}
	return nil
}

// cause leaves out the path, which the message has already.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

// Close gives the directory back.
func (d *dataDir) Close() error { return d.lock.Close() }
