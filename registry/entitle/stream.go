package entitle

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"sync"

	"github.com/weir-registry/weir/registry"
)

// A snapshot is a line of text and then frames: a head of the content's length,
// its CRC-32C and that of these eight bytes, all big-endian, and the content,
// whose first byte says what the rest is. The head has a sum of its own so that a
// length that is wrong is told from a file that ends too early. A start (JSON),
// records in the order of their keys, and an end; a reader takes no byte after it.
// A file goes on with deltas and marks.
const (
	magic       = "weir entitlements 1\n"
	frameStart  = 'S'
	frameRecord = 'R'
	frameEnd    = 'E'
	frameDelta  = 'D'
	frameMark   = 'C'

	frameHead = 12
	// trusted is for how many records at most there is room made before they have
	// come.
	trusted = 4 << 20
	// fullFrame is when a frame of records is sent; one record more may be
	// in it.
	fullFrame = 64 << 10
	maxFrame  = fullFrame + registry.MaxKey + registry.MaxValue + 64
)

// limits are how large a copy may be. They keep one that is wrong, not one that
// is large, from filling the memory.
type limits struct {
	records int
	bytes   int64 // of keys and values
}

var defaultLimits = limits{records: 16 << 20, bytes: 8 << 30}

func (l limits) check(records int, bytes int64) error {
	if records > l.records || bytes > l.bytes {
		return registry.Errorf(registry.ErrTooLarge, "%d entitlement records of %d bytes; %d of %d are the most", records, bytes, l.records, l.bytes)
	}
	return nil
}

// start is what a snapshot begins with.
type start struct {
	Database string `json:"database"`
	Version  uint64 `json:"version"`
	Records  int    `json:"records"`
	Hash     string `json:"hash"`
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func writeFrame(w io.Writer, content []byte) error {
	var head [frameHead]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(content)))
	binary.BigEndian.PutUint32(head[4:], checksum(content))
	binary.BigEndian.PutUint32(head[8:], checksum(head[:8]))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// readFrame reads one frame of at most limit bytes. io.EOF is the end before
// the first byte, io.ErrUnexpectedEOF one within.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if binary.BigEndian.Uint32(head[8:]) != checksum(head[:8]) {
		return nil, registry.Errorf(registry.ErrCorrupt, "the head of a frame does not match its checksum")
	}
	if n == 0 || int64(n) > int64(limit) {
		return nil, registry.Errorf(registry.ErrCorrupt, "a frame of %d bytes", n)
	}
	content := make([]byte, n)
	if _, err := io.ReadFull(r, content); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if checksum(content) != binary.BigEndian.Uint32(head[4:]) {
		return nil, registry.Errorf(registry.ErrCorrupt, "a frame of %d bytes does not match its checksum", n)
	}
	return content, nil
}

func appendRecord[T []byte | string](b []byte, key string, value T, rev uint64) []byte {
	b = binary.AppendUvarint(b, rev)
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = append(b, key...)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

// A parser takes apart the content of a frame; after the first thing that is
// wrong it gives zeros.
type parser struct {
	b   []byte
	bad bool
}

func (p *parser) number() uint64 {
	n, size := binary.Uvarint(p.b)
	if size <= 0 {
		p.bad, p.b = true, nil
		return 0
	}
	p.b = p.b[size:]
	return n
}

func (p *parser) bytes() []byte {
	n := p.number()
	if n > uint64(len(p.b)) {
		p.bad, p.b = true, nil
		return nil
	}
	b := p.b[:n:n]
	p.b = p.b[n:]
	return b
}

// record's Value shares its bytes with the frame.
func (p *parser) record() registry.Record {
	rev := p.number()
	key := string(p.bytes())
	return registry.Record{Rev: rev, Key: key, Value: p.bytes()}
}

// WriteSnapshot writes one version whole. What changes meanwhile is not in it.
// Errors: w's, and ErrUnavailable if there is no copy yet.
func (r *Replica) WriteSnapshot(w io.Writer) error {
	v := r.view.Load()
	if v.database == "" {
		return registry.Errorf(registry.ErrUnavailable, "there is no copy of the entitlements yet")
	}
	return v.write(w)
}

func (v *view) write(to io.Writer) error {
	w := bufio.NewWriterSize(to, fullFrame)
	head, err := json.Marshal(start{v.database, v.version, v.records, v.hash.String()})
	if err != nil {
		return err
	}
	if _, err := w.WriteString(magic); err != nil {
		return err
	}
	if err := writeFrame(w, append([]byte{frameStart}, head...)); err != nil {
		return err
	}
	batch := []byte{frameRecord}
	v.each(func(r *record) bool {
		if batch = appendRecord(batch, r.key, r.value, r.rev); len(batch) >= fullFrame {
			err = writeFrame(w, batch)
			batch = batch[:1]
		}
		return err == nil
	})
	if err == nil && len(batch) > 1 {
		err = writeFrame(w, batch)
	}
	if err == nil {
		err = writeFrame(w, []byte{frameEnd})
	}
	if err != nil {
		return err
	}
	return w.Flush()
}

// ReadSnapshot takes what WriteSnapshot wrote for the copy, once all of it has
// been read and found right; until then, and after an error, the copy that was
// there goes on being asked. It reads no byte past the end of the snapshot.
// Running calls that are no longer admitted are cut.
//
// Errors: ErrCorrupt for bytes that make no sense or do not match their
// checksums; ErrTooLarge; ErrConflict if the snapshot is of another database than
// the copy, or older than it; ErrUnavailable if rd fails.
func (r *Replica) ReadSnapshot(rd io.Reader) error {
	c, err := readSnapshot(rd, r.configured, r.limits, r.fits)
	if err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "read a snapshot of the entitlements")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fits(start{Database: c.database, Version: c.version}); err != nil {
		return err
	}
	r.report(c)
	r.install(c.commit(), nil, nil)
	return nil
}

// fits reports whether a snapshot may take the place of the copy. One that is
// older would bring back what has been revoked since.
func (r *Replica) fits(s start) error {
	v := r.view.Load()
	switch {
	case v.database == "":
		return nil
	case v.database != s.Database:
		return registry.Errorf(registry.ErrConflict, "the snapshot is of the database %.80q, the copy of %q", s.Database, v.database)
	case s.Version < v.version:
		return registry.Errorf(registry.ErrConflict, "the snapshot is of version %d, the copy of %d", s.Version, v.version)
	}
	return nil
}

// A batch is the records of one frame on their way into a view.
type batch struct {
	content []byte
	err     error // why there are no more
	read    []*record
	bad     []error // for each record, why it has no effect
	hashes  []sum
	ready   chan struct{}
}

// parse takes the frame apart; it is the part of reading that costs most, and
// runs for several frames at once.
func (b *batch) parse() {
	defer close(b.ready)
	p := parser{b: b.content[1:]}
	all := string(b.content) // what is kept of all its records
	for len(p.b) > 0 && b.err == nil {
		rec := registry.Record{Rev: p.number()}
		n := len(p.bytes())
		end := len(all) - len(p.b)
		rec.Key = all[end-n : end]
		rec.Value = p.bytes()
		if b.err = checkRecord(&rec); b.err != nil || p.bad || len(rec.Value) == 0 {
			b.err = registry.Errorf(registry.ErrCorrupt, "a frame of records makes no sense")
			return
		}
		end = len(all) - len(p.b)
		r, bad := read(rec.Key, all[end-len(rec.Value):end], rec.Value, rec.Rev)
		b.read, b.bad = append(b.read, r), append(b.bad, bad)
		b.hashes = append(b.hashes, digest(rec.Key, rec.Value, rec.Rev))
	}
}

// readSnapshot reads one into an empty view. accept is asked as soon as it is
// known what the snapshot is of.
func readSnapshot(rd io.Reader, configured []grant, l limits, accept func(start) error) (*change, error) {
	var line [len(magic)]byte
	if _, err := io.ReadFull(rd, line[:]); err != nil {
		return nil, err
	}
	if string(line[:]) != magic {
		return nil, registry.Errorf(registry.ErrCorrupt, "it does not begin like a snapshot of entitlements")
	}
	head, err := readFrame(rd, 4<<10)
	if err != nil {
		return nil, cut(err)
	}
	var s start
	if head[0] != frameStart || json.Unmarshal(head[1:], &s) != nil || s.Database == "" || s.Records < 0 {
		return nil, registry.Errorf(registry.ErrCorrupt, "its beginning makes no sense")
	}
	if err := l.check(s.Records, 0); err != nil {
		return nil, err
	}
	if err := accept(s); err != nil {
		return nil, err
	}
	c := newView(configured, min(s.Records, trusted)).change()
	next, stop := batches(rd)
	defer stop()
	if err := c.fill(next, l); err != nil {
		return nil, err
	}
	c.version = s.Version
	if c.records != s.Records || c.hash.String() != s.Hash || c.database != s.Database {
		return nil, registry.Errorf(registry.ErrCorrupt, "it has %d records of the database %q with the hash %v, and says %d of %.80q with %.64s",
			c.records, c.database, c.hash, s.Records, s.Database, s.Hash)
	}
	return c, nil
}

// cut makes of an end within a snapshot what it is.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// batches reads frames up to the end of the snapshot, and parses them in the
// background; a batch with an err is the last, and io.EOF the right end. stop
// must be called, and has ended all reading when it returns.
func batches(rd io.Reader) (next func() *batch, stop func()) {
	queue := make(chan *batch, 2*runtime.GOMAXPROCS(0))
	work := make(chan *batch, cap(queue))
	quit := make(chan struct{})
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for b := range work {
				b.parse()
			}
		})
	}
	all.Go(func() {
		defer close(queue)
		defer close(work)
		for {
			content, err := readFrame(rd, maxFrame)
			b := &batch{content: content, err: cut(err), ready: make(chan struct{})}
			switch {
			case err != nil:
			case content[0] == frameEnd && len(content) == 1:
				b.err = io.EOF
			case content[0] != frameRecord:
				b.err = registry.Errorf(registry.ErrCorrupt, "a frame of the unknown kind %q", content[0])
			}
			last := b.err != nil // the batch is the worker's once it has it
			if last {
				close(b.ready)
			} else {
				work <- b
			}
			select {
			case queue <- b:
			case <-quit:
				return
			}
			if last {
				return
			}
		}
	})
	return func() *batch { b := <-queue; <-b.ready; return b }, func() { close(quit); all.Wait() }
}

// fill puts the records of a snapshot.
func (c *change) fill(next func() *batch, l limits) error {
	last := ""
	for {
		b := next()
		if b.err == io.EOF {
			return nil
		}
		if b.err != nil {
			return b.err
		}
		for i, r := range b.read {
			if r.key <= last {
				return registry.Errorf(registry.ErrCorrupt, "the record %.80q comes after %.80q", r.key, last)
			}
			last = r.key
			c.insert(r, b.bad[i], b.hashes[i])
		}
		if err := l.check(c.records, c.bytes); err != nil {
			return err
		}
	}
}

// appendDelta is the content of a delta's frame.
func appendDelta(b []byte, d *registry.Delta) []byte {
	b = append(b, frameDelta)
	b = binary.AppendUvarint(b, d.Prev)
	b = binary.AppendUvarint(b, d.Version)
	for i := range d.Records {
		b = appendRecord(b, d.Records[i].Key, d.Records[i].Value, d.Records[i].Rev)
	}
	return b
}

func parseDelta(content []byte) (registry.Delta, error) {
	p := parser{b: content[1:]}
	d := registry.Delta{Prev: p.number(), Version: p.number()}
	for len(p.b) > 0 {
		rec := p.record()
		if len(rec.Value) == 0 {
			rec.Value = nil
		}
		d.Records = append(d.Records, rec)
	}
	if p.bad {
		return registry.Delta{}, fmt.Errorf("a delta makes no sense: %w", registry.ErrCorrupt)
	}
	return d, nil
}
