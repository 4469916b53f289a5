package npm

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

const (
	// loginTime is how long there is to approve a login (registry.Logins).
	loginTime = 10 * time.Minute
	// pollEvery is how often npm asks whether a login has been approved, in
	// seconds.
	pollEvery = "1"
)

// login answers the first request of "npm login": with the address of a page
// for a person, and the address at which to wait for the token. Both are this
// node's own, below the base that the client used; npm takes any answer of 4xx
// or 500 to mean that there is no such thing, and asks for a password instead.
func (h *handler) login(w http.ResponseWriter, r *http.Request, _ request) error {
	var asked map[string]json.RawMessage // {} or {"create": true}, which are one here
	if r.ContentLength != 0 {
		if err := readJSON(w, r, &asked, false); err != nil {
			return err
		}
	}
	base, err := h.base(r)
	if err != nil {
		return err
	}
	id, err := h.o.Logins.Begin(r.Context(), registry.ClientAddr(r.RemoteAddr))
	if err != nil {
		return err
	}
	agent, _, _ := strings.Cut(r.UserAgent(), " ")
	page, err := seal(h.o.Identities.Keys(), begun{ID: id, From: registry.ClientAddr(r.RemoteAddr).String(), Agent: agent, At: time.Now()})
	if err != nil {
		return err
	}
	return tell(w, http.StatusOK, map[string]string{
		"loginUrl": base + "/-/v1/login/" + page,
		"doneUrl":  base + "/-/v1/done/" + url.PathEscape(id),
	})
}

// done answers who waits for a login: 202 until it has been approved, then the
// token, once.
func (h *handler) done(w http.ResponseWriter, r *http.Request, q request) error {
	token, err := h.o.Logins.Claim(r.Context(), q.ref, registry.ClientAddr(r.RemoteAddr))
	switch registry.KindOf(err) {
	case registry.ErrConflict:
		w.Header().Set("Retry-After", pollEvery)
		return tell(w, http.StatusAccepted, struct{}{})
	case registry.ErrNotFound:
		w.Header().Set("Npm-Notice", "this login has expired or was used already; begin again with npm login")
	}
	if err != nil {
		return err
	}
	return tell(w, http.StatusOK, map[string]string{"token": token.Secret})
}

// loginPage is what a person sees in a browser: what wants to be logged in, a
// form for name and password, and how it went.
func (h *handler) loginPage(w http.ResponseWriter, r *http.Request, q request) error {
	b, err := unseal(h.o.Identities.Keys(), q.ref)
	if err != nil {
		return h.showPage(w, r, pageOf(err))
	}
	if age := time.Since(b.At); age > loginTime || age < -loginTime {
		return h.showPage(w, r, page{Status: http.StatusNotFound, Title: "This login has expired",
			Text: "It was begun more than ten minutes ago. Run npm login again and open the new address."})
	}
	p := page{Status: http.StatusOK, Title: "Log in", Login: q.ref, From: b.From, Agent: b.Agent, Ago: ago(time.Since(b.At))}
	p.Elsewhere = b.From != registry.ClientAddr(r.RemoteAddr).String()
	if r.Method != http.MethodPost {
		return h.showPage(w, r, p)
	}
	if err := h.origins.Check(r); err != nil {
		return h.showPage(w, r, page{Status: http.StatusForbidden, Title: "Not from this page",
			Text: "The form was sent by another site than this one. Nothing was done. If you did not mean to log in, close this page."})
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxAccountBody)
	if err := r.ParseForm(); err != nil || r.PostForm.Get("login") != q.ref {
		p.Status, p.Error = http.StatusBadRequest, "The form did not arrive whole. Please try again."
		return h.showPage(w, r, p)
	}
	p.Name = r.PostForm.Get("name")
	err = h.approve(w, r, b.ID, p.Name, r.PostForm.Get("password"))
	switch kind := registry.KindOf(err); {
	case err == nil:
		p = page{Status: http.StatusOK, Title: "Logged in", Text: "You are logged in as " + p.Name + ". You can close this page and go back to the terminal.", Done: true}
	case kind == registry.ErrNotFound, kind == registry.ErrConflict:
		p = page{Status: http.StatusNotFound, Title: "This login is over",
			Text: "It has expired, or was approved already. If the terminal is still waiting, run npm login again and open the new address."}
	default:
		failed := pageOf(err)
		failed.Error, failed.Text, failed.Title = failed.Text, "", p.Title
		failed.Login, failed.From, failed.Agent, failed.Ago, failed.Elsewhere, failed.Name = p.Login, p.From, p.Agent, p.Ago, p.Elsewhere, p.Name
		p = failed
		p.Name = p.Name[:min(len(p.Name), maxAccountName)]
	}
	return h.showPage(w, r, p)
}

// approve logs in who began the login id, as name.
func (h *handler) approve(w http.ResponseWriter, r *http.Request, id, name, password string) error {
	who, err := h.password(r, name, password)
	if err != nil {
		return wrongLogin(err, "Wrong name or password.")
	}
	reply.Identified(w, who)
	return h.o.Logins.Approve(r.Context(), id, who)
}

// pageOf is the page about a failure.
func pageOf(err error) page {
	p := page{Status: http.StatusServiceUnavailable, Title: "Something went wrong", After: registry.RetryAfter(err), Err: err}
	switch kind := registry.KindOf(err); {
	case errors.As(err, new(*badLogin)):
		// Not 401, which would be about an Authorization header.
		p.Status, p.Text = http.StatusForbidden, registry.Public(err)
	case kind == registry.ErrLimited:
		p.Status, p.Text = http.StatusTooManyRequests, "There were too many wrong passwords. Please wait "+spoken(max(p.After, leastRetry))+" and try again."
	case kind == registry.ErrDenied:
		p.Status, p.Text = http.StatusForbidden, registry.Public(err)
	case kind == registry.ErrNotFound:
		p.Status, p.Title = http.StatusNotFound, "There is no such login"
		p.Text = "The address of this page is not whole, or too old. Run npm login again and open the new address."
	default:
		p.After = max(p.After, leastRetry)
		p.Text = "The node that decides about logins cannot be asked just now. Please try again in a moment."
	}
	return p
}
