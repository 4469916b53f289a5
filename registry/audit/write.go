package audit

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
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// batch is how many bytes are collected at most before they are written.
	batch = 64 << 10
	// beat is how often what has been written is synced, and what could not be
	// written is tried again.
	beat = time.Second
	// complain is how often a failure that goes on is logged.
	complain = time.Minute
)

// file is an *os.File, or in tests one that fails.
type file interface {
	io.WriteCloser
	Truncate(size int64) error
	Sync() error
	Stat() (fs.FileInfo, error)
}

// run is the one goroutine that writes.
func (l *Log) run() {
	defer close(l.done)
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		queue := l.queue
		if l.w.stuck {
			queue = nil // what cannot be written waits in the queue
		}
		select {
		case e := <-queue:
			l.take(e)
			l.w.flush()
		case <-tick.C:
			l.w.flush()
			if !l.w.stuck {
				l.account(false)
				l.w.flush()
			}
			l.w.sync()
		case <-l.close:
			l.finish()
			return
		}
		if !l.w.stuck && l.lost.Load() > 0 {
			l.account(false)
			l.w.flush()
		}
	}
}

// take encodes e and what else waits, up to a batch.
func (l *Log) take(e Event) {
	for {
		l.w.add(e)
		if len(l.w.buf) >= batch {
			return
		}
		select {
		case e = <-l.queue:
		default:
			return
		}
	}
}

// account adds what has been folded and a line for what has been lost.
func (l *Log) account(all bool) {
	for _, e := range l.unfold(l.o.Now(), all) {
		l.w.add(e)
	}
	if n := l.lost.Swap(0); n > 0 {
		e := Event{Action: "audit", Decision: Lost, Count: n, Why: fmt.Sprintf("%d events were lost", n)}
		l.fill(&e)
		l.w.add(e)
	}
}

// finish writes all there is, as far as the disk lets it. Nothing is put into the
// queue any more.
func (l *Log) finish() {
	l.w.stuck = false // it is tried once more
	for len(l.queue) > 0 && !l.w.stuck {
		l.take(<-l.queue)
		l.w.flush()
	}
	if !l.w.stuck {
		l.account(true)
		l.w.flush()
	}
	if l.w.stuck {
		for _, e := range l.unfold(l.o.Now(), true) {
			l.lose(e.Count)
		}
		for len(l.queue) > 0 {
			l.lose(max((<-l.queue).Count, 1))
		}
		for line := range bytes.Lines(l.w.buf) {
			var e Event
			_ = json.Unmarshal(line, &e) // it was made here
			l.lose(max(e.Count, 1))
		}
	}
	l.w.shut()
}

// writer owns the file. It belongs to the goroutine of run.
type writer struct {
	o    Options
	f    file  // nil: not open
	size int64 // of f
	torn bool  // f may end in the middle of a line
	buf  []byte
	line bytes.Buffer

	dirty      bool // written and not synced
	stuck      bool // buf could not be written
	complained time.Time
}

// add encodes an event.
func (w *writer) add(e Event) {
	e.Time = e.Time.UTC()
	w.line.Reset()
	enc := json.NewEncoder(&w.line) // ends with a newline
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		// A time or an address that JSON cannot have: an event cannot be made of
		// outside bytes so.
		w.o.Log.Error("an audit event cannot be written down", "err", err)
		return
	}
	w.buf = appendPrintable(w.buf, w.line.Bytes())
}

// appendPrintable appends JSON with every character escaped that is not meant to
// be seen but to do something: C1 control codes drive terminals, and directions
// of writing make a text look like another. JSON escapes only those below U+0020.
func appendPrintable(to, line []byte) []byte {
	for i := 0; i < len(line); {
		r, n := utf8.DecodeRune(line[i:])
		if r >= 0x7f && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) {
			if r > 0xffff {
				high, low := utf16.EncodeRune(r)
				to = fmt.Appendf(to, `\u%04x\u%04x`, high, low)
			} else {
				to = fmt.Appendf(to, `\u%04x`, r)
			}
		} else {
			to = append(to, line[i:i+n]...)
		}
		i += n
	}
	return to
}

// flush writes buf, and puts files aside on the way. What cannot be written stays
// in buf.
func (w *writer) flush() {
	if len(w.buf) == 0 && w.f == nil && w.stuck { // it could not even be opened
		if w.open() != nil {
			return
		}
		w.unstick()
	}
	rest := w.buf
	for len(rest) > 0 {
		n, err := w.step(rest)
		rest = rest[n:]
		if err != nil {
			w.failed(err)
			break
		}
	}
	if len(rest) == 0 && len(w.buf) > 0 && w.stuck {
		w.unstick()
	}
	w.buf = append(w.buf[:0], rest...)
}

func (w *writer) unstick() {
	w.stuck, w.complained = false, time.Time{}
	w.o.Log.Info("the audit log is being written again", "file", w.o.File)
}

// step writes as many whole lines as the file may take, and returns their bytes.
func (w *writer) step(lines []byte) (int, error) {
	if w.f == nil {
		if err := w.open(); err != nil {
			return 0, err
		}
	}
	n := fitting(lines, w.o.Size-w.size)
	if n == 0 && w.size > 0 {
		if err := w.rotate(); err == nil {
			return 0, nil
		} else if w.f == nil {
			return 0, err
		} else {
			// A file that is too long is better than none.
			w.complain("the audit log cannot be put aside", err)
			n = len(lines)
		}
	}
	if n == 0 {
		n = bytes.IndexByte(lines, '\n') + 1 // longer than a file: alone in one
	}
	if err := w.write(lines[:n]); err != nil {
		return 0, err
	}
	return n, nil
}

// fitting is how many bytes of whole lines room has room for.
func fitting(lines []byte, room int64) int {
	if int64(len(lines)) <= room {
		return len(lines)
	}
	return bytes.LastIndexByte(lines[:max(room, 0)], '\n') + 1
}

// write appends whole lines, all or none of them: after an error they come again.
func (w *writer) write(lines []byte) error {
	if w.torn {
		if err := w.mend(); err != nil {
			return err
		}
	}
	n, err := w.f.Write(lines)
	if err == nil {
		w.size += int64(n)
		w.dirty = true
		return nil
	}
	if n > 0 {
		w.torn = true
		_ = w.mend() // else before the next write
	}
	return err
}

// mend takes away what is beyond the last whole line.
func (w *writer) mend() error {
	if err := w.f.Truncate(w.size); err != nil {
		return err
	}
	w.torn = false
	return nil
}

// failed notes that buf could not be written.
func (w *writer) failed(err error) {
	w.stuck = true
	w.complain("the audit log cannot be written", err)
}

func (w *writer) complain(what string, err error) {
	if now := w.o.Now(); w.complained.IsZero() || now.Sub(w.complained) >= complain {
		w.complained = now
		w.o.Log.Error(what, "file", w.o.File, "err", err)
		if w.o.Meter != nil {
			w.o.Meter.Event(what, "audit")
		}
	}
}

// open opens the file and takes a torn last line away.
func (w *writer) open() error {
	if err := os.MkdirAll(filepath.Dir(w.o.File), 0o700); err != nil {
		return err
	}
	f, err := w.o.open(w.o.File)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	whole, err := wholeLines(w.o.File, info)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.f, w.size, w.torn = f, whole, whole < info.Size()
	if w.torn {
		w.o.Log.Warn("the audit log ends in the middle of a line, which is taken away", "file", w.o.File, "bytes", info.Size()-whole)
		_ = w.mend() // else before the first write
	}
	return nil
}

func openFile(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// wholeLines is how many bytes of a file are whole lines.
func wholeLines(path string, info fs.FileInfo) (int64, error) {
	size := info.Size()
	if !info.Mode().IsRegular() || size == 0 {
		return size, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, batch)
	for end := size; end > 0; {
		n := min(end, batch)
		if _, err := f.ReadAt(buf[:n], end-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return end - n + int64(i) + 1, nil
		}
		end -= n
	}
	return 0, nil
}

// rotate puts the file aside and begins a new one. If it fails the file is open
// still, or f is nil.
func (w *writer) rotate() error {
	w.sync()
	if err := shift(w.o.File, w.o.Keep); err != nil {
		return err
	}
	err := w.f.Close()
	w.f = nil
	return errors.Join(err, w.open())
}

// shift renames path to path.1, path.1 to path.2 and so on, the oldest first, so
// that at whatever point it ends no file is lost but the one that is too old. A
// number that is missing, because it did end so, needs no more.
func shift(path string, keep int) error {
	numbered := func(n int) string { return fmt.Sprintf("%s.%d", path, n) }
	free := 1
	for ; free < keep; free++ {
		if _, err := os.Lstat(numbered(free)); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	for n := free; n > 1; n-- {
		if err := os.Rename(numbered(n-1), numbered(n)); err != nil {
			return err
		}
	}
	if err := os.Rename(path, numbered(1)); err != nil {
		return err
	}
	for n := keep + 1; os.Remove(numbered(n)) == nil; n++ { // more were kept once
	}
	return nil
}

// sync makes what has been written durable, and leaves a file that somebody else
// has moved away.
func (w *writer) sync() {
	if w.f == nil {
		return
	}
	if w.dirty {
		if err := w.f.Sync(); err != nil {
			w.complain("the audit log cannot be synced", err)
		}
		w.dirty = false
	}
	mine, err := w.f.Stat()
	if err != nil {
		return
	}
	if there, err := os.Stat(w.o.File); errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, there) {
		_ = w.f.Close()
		w.f = nil
	}
}

// shut closes the file.
func (w *writer) shut() {
	w.sync()
	if w.f != nil {
		if err := w.f.Close(); err != nil {
			w.complain("the audit log cannot be closed", err)
		}
		w.f = nil
	}
}

// diskTrouble reports whether an error is the disk's and may pass.
func diskTrouble(err error) bool {
	for _, no := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.ENFILE, syscall.EMFILE} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}
