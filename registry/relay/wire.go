package relay

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
)

// maxAge bounds ages, so that no arithmetic on them overflows.
const maxAge = 100 * 365 * 24 * time.Hour

// age is how long ago something was, in microseconds; negative: never.
type age int64

// ageOf is t as it travels at now: rounded up, so that nothing becomes younger
// by travelling.
func ageOf(t, now time.Time) age {
	if t.IsZero() {
		return -1
	}
	d := min(max(now.Sub(t), 0), maxAge)
	return age((d + time.Microsecond - 1) / time.Microsecond)
}

// time is when that was, by the clock of who got it at now; zero: never.
func (a age) time(now time.Time) time.Time {
	if a < 0 {
		return time.Time{}
	}
	return now.Add(-min(time.Duration(min(int64(a), maxAge.Microseconds()))*time.Microsecond, maxAge))
}

// stateText is a registry.Standing as it travels.
type stateText struct {
	Database  string `json:"database"`
	Version   uint64 `json:"version"`
	Hash      string `json:"hash,omitempty"`
	Records   int    `json:"records,omitempty"`
	Confirmed age    `json:"confirmed"`
}

func stateOf(s registry.Standing, now time.Time) stateText {
	return stateText{Database: s.Database, Version: s.Version, Hash: s.Hash, Records: s.Records, Confirmed: ageOf(s.Confirmed, now)}
}

func (s stateText) standing(now time.Time) registry.Standing {
	return registry.Standing{Database: s.Database, Version: s.Version, Hash: s.Hash, Records: s.Records, Confirmed: s.Confirmed.time(now)}
}

func (s stateText) valid() bool {
	return shortText(s.Database) && shortText(s.Hash) && s.Records >= 0
}

// shortText reports whether s can be shown on a terminal and is short.
func shortText(s string) bool {
	if len(s) > maxText || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return false
		}
	}
	return true
}

// parseState reads the payload of a hello or a confirmation.
func parseState(payload []byte, now time.Time) (registry.Standing, error) {
	var s stateText
	if err := decode(payload, &s); err != nil || !s.valid() || s.Database == "" {
		return registry.Standing{}, registry.Errorf(registry.ErrCorrupt, "a frame that says nothing of a copy")
	}
	return s.standing(now), nil
}

// parseDeltas reads the payload of a frame of changes. Whether they follow up
// what the copy has is for the copy to see.
func parseDeltas(payload []byte) ([]registry.Delta, error) {
	var ds []registry.Delta
	if err := decode(payload, &ds); err != nil || len(ds) == 0 {
		return nil, registry.Errorf(registry.ErrCorrupt, "a frame of changes that has none")
	}
	for i, d := range ds {
		if d.Version <= d.Prev || i > 0 && d.Prev != ds[i-1].Version {
			return nil, registry.Errorf(registry.ErrCorrupt, "changes that do not follow one another")
		}
		for _, r := range d.Records {
			if r.Key == "" || len(r.Key) > registry.MaxKey || len(r.Value) > registry.MaxValue {
				return nil, registry.Errorf(registry.ErrCorrupt, "a change of what cannot be")
			}
		}
	}
	return ds, nil
}

// decode reads one JSON value and nothing after it. Its errors have nothing of
// the text in them. Members that are not known are ignored: nodes of a later
// version may say more.
func decode(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if d.Decode(into) != nil {
		return errors.New("malformed")
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one value")
	}
	return nil
}

// where is what a follower says of itself when it asks for a stream.
type where struct {
	state registry.Standing // Database, Version and Hash
	fresh bool              // it wants a snapshot, whatever it has
	probe bool              // it wants the hello alone
}

func (w where) url() string {
	v := url.Values{}
	if w.state.Whole() {
		v.Set("database", w.state.Database)
		v.Set("version", strconv.FormatUint(w.state.Version, 10))
		v.Set("hash", w.state.Hash)
	}
	if w.fresh {
		v.Set("snapshot", "1")
	}
	if w.probe {
		v.Set("probe", "1")
	}
	return streamPath + "?" + v.Encode()
}

func parseWhere(query string) (w where, err error) {
	v, err := url.ParseQuery(query)
	if err != nil {
		return w, registry.Errorf(registry.ErrInvalid, "the query is malformed")
	}
	w = where{fresh: v.Get("snapshot") == "1", probe: v.Get("probe") == "1"}
	w.state.Database, w.state.Hash = v.Get("database"), v.Get("hash")
	if !shortText(w.state.Database) || !shortText(w.state.Hash) {
		return w, registry.Errorf(registry.ErrInvalid, "that is no database or no hash")
	}
	if text := v.Get("version"); text != "" {
		if w.state.Version, err = strconv.ParseUint(text, 10, 64); err != nil {
			return w, registry.Errorf(registry.ErrInvalid, "%.40q is not a version", text)
		}
	}
	return w, nil
}

// report is what a node tells the one behind it.
type report struct {
	// Self is its own copy. Gone says that it follows another node from now on.
	Self stateText `json:"self"`
	Gone bool      `json:"gone,omitempty"`
	// Front are the nodes in front of it: those whose standing has changed, or
	// with All all that it knows.
	Front []frontText `json:"front,omitempty"`
	All   bool        `json:"all,omitempty"`
	// Used says when tokens were last used, by their IDs.
	Used map[string]age `json:"used,omitempty"`
}

// frontText is a registry.NodeStanding as it travels.
type frontText struct {
	Node string   `json:"node"`
	Via  []string `json:"via,omitempty"`
	stateText
	Heard age `json:"heard"`
}

// parseReport reads a report. Its errors are ErrInvalid.
func parseReport(text []byte) (r report, err error) {
	if err := decode(text, &r); err != nil {
		return r, registry.Errorf(registry.ErrInvalid, "the report is malformed")
	}
	if !r.Self.valid() || len(r.Front) > boardLimit || len(r.Used) > maxUses {
		return r, registry.Errorf(registry.ErrInvalid, "the report says what cannot be")
	}
	for _, f := range r.Front {
		ok := f.valid() && f.Node != "" && shortText(f.Node) && len(f.Via) <= maxVia && f.Heard >= 0
		for _, via := range f.Via {
			ok = ok && via != "" && shortText(via)
		}
		if !ok {
			return r, registry.Errorf(registry.ErrInvalid, "the report says of a node what cannot be")
		}
	}
	for id, used := range r.Used {
		if id == "" || !shortText(id) || used < 0 {
			return r, registry.Errorf(registry.ErrInvalid, "the report says of a token what cannot be")
		}
	}
	return r, nil
}

// failure is the body of an answer that is a failure; its kind is in the header.
type failure struct {
	Public string `json:"public"`
	After  int64  `json:"after,omitempty"` // milliseconds
	// Scope says that it is registry.ErrScope.
	Scope bool `json:"scope,omitempty"`
	// Undone says that nothing was done: another node may be asked.
	Undone bool `json:"undone,omitempty"`
}

// errUndone marks failures of questions that have certainly not been executed.
var errUndone = errors.New("it was not done")

// undone is a failure of a question that has not been executed.
func undone(kind error, text string) *registry.Error {
	return &registry.Error{Kind: kind, Text: text, Public: text, Err: errUndone}
}

// refuse answers with a failure.
func refuse(w http.ResponseWriter, err error) {
	word, status := outbound.WordOf(registry.KindOf(err))
	text, _ := json.Marshal(failure{Public: cut(registry.Public(err)), After: int64(registry.RetryAfter(err) / time.Millisecond),
		Scope: errors.Is(err, registry.ErrScope), Undone: errors.Is(err, errUndone)}) // strings and numbers: it cannot fail
	h := w.Header()
	h.Set(kindHeader, word)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text)
}

// cut is what of a text fits into a failure, whatever it is escaped to.
func cut(s string) string { return s[:min(len(s), maxFailure/8)] }

// failed is the error that an answer which is a failure stands for. host is who
// gave it.
func failed(resp *http.Response, host string) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxFailure)) // what there is of it
	var f failure
	kind := outbound.KindOf(resp.Header.Get(kindHeader))
	if kind == nil || decode(text, &f) != nil {
		// Not a node's own words, or a node that does not know this one. What is
		// refused so has not been done; what failed may have been.
		e := &registry.Error{Kind: registry.ErrUnavailable, Text: host + " answered " + strconv.Itoa(resp.StatusCode), Public: "a node behind refuses"}
		if resp.StatusCode >= 400 && resp.StatusCode <= 499 {
			e.Err = errUndone
		}
		return e
	}
	e := &registry.Error{Kind: kind, Text: host + " says: " + f.Public, Public: f.Public,
		After: time.Duration(min(max(f.After, 0), 24*time.Hour.Milliseconds())) * time.Millisecond}
	switch {
	case f.Undone:
		e.Err = errUndone
	case f.Scope:
		e.Err = registry.ErrScope
	}
	return e
}
