package npm

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

const (
	// maxAccountBody bounds what is posted about accounts.
	maxAccountBody = 64 << 10
	// maxAccountName is how long the name of an account is at most.
	maxAccountName = 64
	// maxPassword bounds what is hashed as a password.
	maxPassword = 1 << 10
	// maxJWT bounds what is exchanged for a token; it fits in a header.
	maxJWT = 16 << 10
	// sessionLifetime is for how long "npm login" lasts.
	sessionLifetime = 90 * 24 * time.Hour
)

// noSignUp is told to everybody whose name or password is wrong, so that it
// tells nobody whether there is such a name: "npm adduser" sends the same as
// "npm login".
const noSignUp = "wrong name or password; an account is made by who runs this registry, and not by npm"

// wrongLogin is noSignUp because of err, if err is about what was presented;
// the answer is the same whatever was wrong about it.
func wrongLogin(err error, text string) error {
	if registry.KindOf(err) != registry.ErrUnauthenticated {
		return err
	}
	return &badLogin{&registry.Error{Kind: registry.ErrUnauthenticated, Text: "log in", Public: text, Err: err}}
}

// someone is who asks, which must be somebody.
func someone(q request) (registry.Principal, error) {
	if q.who.Anonymous() {
		return q.who, registry.Errorf(registry.ErrUnauthenticated, "nobody is logged in here")
	}
	return q.who, nil
}

// readJSON reads a body of at most maxAccountBody into v. A field that v does
// not have is ErrInvalid if strict.
func readJSON(w http.ResponseWriter, r *http.Request, v any, strict bool) error {
	if r.ContentLength > maxAccountBody {
		return &tooLong{maxAccountBody}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAccountBody))
	if err != nil {
		var long *http.MaxBytesError
		if errors.As(err, &long) {
			return &tooLong{maxAccountBody}
		}
		return registry.Errorf(registry.ErrInvalid, "the body could not be read to its end")
	}
	return parseJSON(body, v, strict)
}

func parseJSON(body []byte, v any, strict bool) error {
	d := json.NewDecoder(bytes.NewReader(body))
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(v); err != nil {
		if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok && len(name) < maxRef {
			return registry.Errorf(registry.ErrInvalid, "%s is not supported here", name)
		}
		return registry.Errorf(registry.ErrInvalid, "the body is not the JSON object that is expected here")
	}
	if _, err := d.Token(); err != io.EOF {
		return registry.Errorf(registry.ErrInvalid, "there is more after the body's JSON object")
	}
	return nil
}

// tell answers with what is for nobody but who asks.
func tell(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "write an answer")
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", mediaJSON)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	reply.Record(w, registry.Via{Fwd: "bypass"})
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
	return nil
}

// whoami answers with the name of who asks.
func (h *handler) whoami(w http.ResponseWriter, _ *http.Request, q request) error {
	if h.o.Logins == nil {
		return registry.Errorf(registry.ErrUnauthenticated, "nobody is logged in: this registry has no accounts")
	}
	who, err := someone(q)
	if err != nil {
		return err
	}
	return tell(w, http.StatusOK, map[string]string{"username": who.Name})
}

// profile answers "npm profile get", and "npm profile set" with what to do
// instead.
func (h *handler) profile(w http.ResponseWriter, r *http.Request, q request) error {
	who, err := someone(q)
	if err != nil {
		return err
	}
	if r.Method == http.MethodPost {
		return registry.Errorf(registry.ErrDenied, "profiles, passwords and second factors are not changed by npm here; ask who runs this registry")
	}
	p := struct {
		Name          string  `json:"name"`
		FullName      string  `json:"fullname"`
		Email         string  `json:"email"`
		EmailVerified bool    `json:"email_verified"`
		TFA           *string `json:"tfa"`
		Created       string  `json:"created,omitempty"`
		Updated       string  `json:"updated,omitempty"`
		Kind          string  `json:"kind,omitempty"`
	}{Name: who.Name}
	if a, ok := h.o.Identities.Account(who.Name); ok && a.UID == who.UID {
		p.Email, p.Kind, p.Created = a.Email, a.Kind, stamp(a.Created)
		p.Updated = p.Created
	}
	return tell(w, http.StatusOK, p)
}

// legacyLogin answers "npm login --auth-type=legacy", and what clients do that
// have no other. CouchDB, whose protocol this is, answers 409 for a user that
// exists, whereupon clients ask for the user and put it again with the password
// in the Authorization header; a 201 at once spares them that.
func (h *handler) legacyLogin(w http.ResponseWriter, r *http.Request, q request) error {
	var asked struct {
		Name     string `json:"name"`
		Password string `json:"password"`
	}
	if err := readJSON(w, r, &asked, false); err != nil {
		return err
	}
	if asked.Name != "" && asked.Name != q.ref {
		return registry.Errorf(registry.ErrInvalid, "the path names another user than the body")
	}
	who, err := h.password(r, q.ref, asked.Password)
	if err != nil {
		return wrongLogin(err, noSignUp)
	}
	reply.Identified(w, who)
	secret := asked.Password // one that has shown a token keeps it
	if who.Token == "" {
		token, err := h.o.Tokens.CreateToken(r.Context(), who, registry.TokenSpec{Kind: "session", Note: "npm login", Lifetime: sessionLifetime})
		if err != nil {
			return err
		}
		secret = token.Secret
	}
	return tell(w, http.StatusCreated, struct {
		OK    bool   `json:"ok"`
		ID    string `json:"id"`
		Rev   string `json:"rev"`
		Token string `json:"token"`
	}{true, couchUser + q.ref, "1-0", secret})
}

// password checks a name and a password, of which those that cannot be right
// bother nobody.
func (h *handler) password(r *http.Request, name, password string) (registry.Principal, error) {
	if name == "" || len(name) > maxAccountName || password == "" || len(password) > maxPassword {
		return registry.Principal{}, registry.Errorf(registry.ErrUnauthenticated, "wrong name or password")
	}
	return h.o.Logins.Password(r.Context(), name, password, registry.ClientAddr(r.RemoteAddr))
}

// presented is who a token in a path stands for. The token is its own proof:
// whoever has it could use it.
func (h *handler) presented(r *http.Request, secret string) (registry.Principal, error) {
	as := r.Clone(r.Context())
	as.Header = http.Header{"Authorization": {"Bearer " + secret}}
	who, err := h.o.Gate.Who(as)
	if err == nil && who.Token == "" {
		err = registry.Errorf(registry.ErrInvalid, "this token is not kept anywhere; it ends by itself")
	}
	return who, err
}

// logout answers "npm logout". npm sends the token in the path, and keeps it in
// its configuration unless it is told that it was ended; for one that has
// ended already the text says what to do.
func (h *handler) logout(w http.ResponseWriter, r *http.Request, q request) error {
	who, err := h.presented(r, q.ref)
	if registry.KindOf(err) == registry.ErrUnauthenticated {
		base, _ := h.base(r)
		_, nerf, _ := strings.Cut(base, ":")
		return &registry.Error{Kind: registry.ErrUnauthenticated, Text: "log out", Err: err,
			Public: registry.Public(err) + "; to forget it: npm config delete " + nerf + "/:_authToken"}
	}
	if err != nil {
		return err
	}
	reply.Identified(w, who)
	if err := h.o.Tokens.RevokeToken(r.Context(), who, who.Token); err != nil {
		return err
	}
	return tell(w, http.StatusOK, map[string]bool{"ok": true})
}

// exchange answers a CI job that presents its JWT. npm does so before it
// publishes, for one package; what the token is good for is for the rules of
// this registry to say.
func (h *handler) exchange(w http.ResponseWriter, r *http.Request, _ request) error {
	scheme, jwt, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if jwt = strings.TrimSpace(jwt); !strings.EqualFold(scheme, "Bearer") || jwt == "" || len(jwt) > maxJWT {
		return registry.Errorf(registry.ErrUnauthenticated, "a token of the CI system is expected as the Bearer token")
	}
	token, err := h.o.Logins.Exchange(r.Context(), jwt, registry.ClientAddr(r.RemoteAddr))
	if err != nil {
		return err
	}
	reply.Identified(w, registry.Principal{Name: token.Owner})
	return tell(w, http.StatusCreated, struct {
		Token   string `json:"token"`
		Expires string `json:"expires,omitempty"`
	}{token.Secret, stamp(token.Expires)})
}

// stamp is a time as npm's registry writes it; "" for none.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}
