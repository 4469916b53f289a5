package account

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

// AdminPath is the beginning of all paths of the admin API.
const AdminPath = "/admin/v1/"

const (
	// maxBody bounds a request's body, in bytes.
	maxBody = 64 << 10
	// bodyTime is how long it may take to arrive.
	bodyTime = 10 * time.Second
	// answerTime is how long a request may take that waits for no nodes: a
	// database that does not answer would have a person wait for minutes.
	answerTime = 10 * time.Second
)

// A Board is how the copies of the nodes in front of this one are.
type Board interface {
	// List is how they are, as they have told.
	List() []registry.NodeStanding
	// Wait calls reached once for each of those that has a version or gets it,
	// and returns those that have not when ctx ends or nobody has heard of them
	// any more.
	Wait(ctx context.Context, version uint64, reached func(registry.NodeStanding)) (without []registry.NodeStanding, err error)
}

// HandlerOptions are for Handler. Guard is needed.
type HandlerOptions struct {
	// Guard decides who administers: who is admitted for registry.Admin with no
	// name.
	Guard registry.Guard
	// Decide is what a check asks instead of Guard, for one that does not write
	// down what nobody has tried; nil: Guard.
	Decide registry.Guard
	// Header is a header that must be in every request that changes something,
	// so that a web page in an operator's browser cannot send it unasked; "":
	// none.
	Header string
	// Node is what this node is called where nodes are listed.
	Node string
	// State is how this node's own copy is; nil: it is not told.
	State func() registry.Standing
	// Board is the nodes in front; nil: there are none.
	Board Board
	Log   *slog.Logger // nil: slog.Default
}

// An admin is the API.
type admin struct {
	a   *Authority
	o   HandlerOptions
	mux *http.ServeMux
}

// Handler is the admin API over a's accounts, for the paths under AdminPath.
// Requests and answers are JSON; who asks is known by "Authorization: Bearer
// TOKEN" and must have the right "admin *". These are the requests, with what
// they take and answer; {…} answers of changes have "version" too, the version
// of the entitlements that have the change:
//
//	GET    whoami                         Whoami
//	GET    users                          {"users": […]}, as of robots
//	POST   users                          {"name", "email", "password"}: an account
//	POST   robots                         {"name"}: an account
//	GET    users/NAME, robots/NAME        an account, its teams by name
//	DELETE users/NAME, robots/NAME        {}
//	PUT    users/NAME/password            {"password"}: {}
//	PUT    accounts/NAME/disabled         {"disabled": true}: {}
//	GET    teams                          {"teams": […]}
//	POST   teams                          {"name"}: a team
//	GET    teams/NAME                     a team with "members"
//	DELETE teams/NAME                     {}
//	PUT    teams/NAME/members/ACCOUNT     {}; DELETE too
//	GET    tokens?owner=NAME              {"tokens": […]}
//	POST   tokens                         {"owner"} and registry.TokenSpec: registry.NewToken
//	GET    tokens/ID                      registry.Token
//	DELETE tokens/ID                      registry.Token
//	GET    grants?to=WHOM                 {"grants": […]}
//	POST   grants                         GrantSpec: registry.Grant
//	DELETE grants/ID                      registry.Grant
//	GET    check?who=WHOM&right=RIGHT     Checked: whether somebody may, and why
//	DELETE keys                           {}: those of short-lived tokens, for a new one
//	GET    nodes                          {"nodes": [registry.NodeStanding…]}
//	GET    nodes?version=N&wait=10s       a line of JSON, a Reached, for each node as it has the version, and a last one
//
// A token is called by its ID, or "sha256:" and the hash of its secret in hex.
// Hashes and secrets are in no answer but that of POST tokens. An error is
// {"error": "…", "hint": "…"}, where hint, if it is there, says what to do.
func Handler(a *Authority, o HandlerOptions) http.Handler {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Decide == nil {
		o.Decide = o.Guard
	}
	h := &admin{a: a, o: o, mux: http.NewServeMux()}
	h.routes()
	return h.mux
}

// A caller is who has been admitted, and what was asked.
type caller struct {
	*http.Request
	by   Actor
	body []byte
}

// An endpoint answers with a value, or fails. Nil: it has answered itself.
type endpoint func(w http.ResponseWriter, c *caller) (any, error)

func (h *admin) routes() {
	for pattern, e := range map[string]endpoint{
		"GET whoami":                            h.whoami,
		"GET users":                             h.listAccounts(registry.User),
		"GET robots":                            h.listAccounts(registry.Robot),
		"POST users":                            h.addUser,
		"POST robots":                           h.addRobot,
		"GET users/{name}":                      h.showAccount(registry.User),
		"GET robots/{name}":                     h.showAccount(registry.Robot),
		"DELETE users/{name}":                   h.removeAccount(registry.User),
		"DELETE robots/{name}":                  h.removeAccount(registry.Robot),
		"PUT users/{name}/password":             h.setPassword,
		"PUT accounts/{name}/disabled":          h.setDisabled,
		"GET teams":                             h.listTeams,
		"POST teams":                            h.addTeam,
		"GET teams/{name}":                      h.showTeam,
		"DELETE teams/{name}":                   h.removeTeam,
		"PUT teams/{name}/members/{account}":    h.join,
		"DELETE teams/{name}/members/{account}": h.leave,
		"GET tokens":                            h.listTokens,
		"POST tokens":                           h.createToken,
		"GET tokens/{id}":                       h.showToken,
		"DELETE tokens/{id}":                    h.revokeToken,
		"GET grants":                            h.listGrants,
		"POST grants":                           h.grant,
		"DELETE grants/{id}":                    h.revokeGrant,
		"GET check":                             h.check,
		"DELETE keys":                           h.rekey,
		"GET nodes":                             h.nodes,
	} {
		method, path, _ := strings.Cut(pattern, " ")
		h.mux.Handle(method+" "+AdminPath+path, h.admitted(e))
	}
	h.mux.Handle(AdminPath, h.admitted(func(http.ResponseWriter, *caller) (any, error) {
		return nil, registry.Errorf(registry.ErrNotFound, "the admin API has no such path, or not with this method")
	}))
}

// admitted lets those ask who may, and answers what e returns.
func (h *admin) admitted(e endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != AdminPath+"nodes" { // which has a limit of its own
			ctx, cancel := context.WithTimeout(r.Context(), answerTime)
			defer cancel()
			r = r.WithContext(ctx)
		}
		c, err := h.admit(w, r)
		var answer any
		if err == nil {
			answer, err = e(w, c)
		}
		switch {
		case err != nil:
			h.fail(w, r, err)
		case answer != nil:
			writeJSON(w, http.StatusOK, answer)
		}
	})
}

// errHeader is a change without the header that browsers do not send unasked.
var errHeader = errors.New("a header is missing")

// admit finds out who asks and whether he may, and reads the body.
func (h *admin) admit(w http.ResponseWriter, r *http.Request) (*caller, error) {
	if r.Method != http.MethodGet {
		// For who is refused too: the server waits for the rest of his body.
		// Where the deadline cannot be set the server's own has to do.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	}
	secret, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, registry.Errorf(registry.ErrUnauthenticated, "a token is needed here")
	}
	addr := registry.ClientAddr(r.RemoteAddr)
	who, err := h.a.o.Replica.Token(strings.TrimSpace(secret), addr)
	if err != nil {
		return nil, err
	}
	if err := h.o.Guard.Admit(r.Context(), &registry.Call{Who: who, Action: registry.Admin, Addr: addr, Agent: r.UserAgent()}); err != nil {
		return nil, err
	}
	c := &caller{Request: r, by: Actor{Who: who, Addr: addr}}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return c, nil
	}
	if h.o.Header != "" && r.Header.Get(h.o.Header) == "" {
		return nil, &registry.Error{Kind: registry.ErrDenied, Text: "no " + h.o.Header, Public: "the " + h.o.Header + " header is missing", Err: errHeader}
	}
	if c.body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return nil, registry.Errorf(registry.ErrTooLarge, "the request is longer than %d bytes", maxBody)
		}
		return nil, registry.Errorf(registry.ErrInvalid, "the request did not arrive")
	}
	// What is done now may take longer.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	return c, nil
}

// decode reads the body, which must be one JSON object with no other keys than v
// has.
func (c *caller) decode(v any) error {
	if err := decodeStrictly(c.body, v); err != nil {
		return registry.Errorf(registry.ErrInvalid, "the request cannot be read: %s", err)
	}
	return nil
}

func decodeStrictly(text []byte, v any) error {
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is something behind it")
	}
	return nil
}

// A failure is the answer to what failed.
type failure struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

func (h *admin) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, hint := statusOf(err)
	if status >= 500 {
		h.o.Log.Error("admin API", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="weir admin"`)
	}
	if after := registry.RetryAfter(err); after > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	}
	writeJSON(w, status, failure{Error: registry.Public(err), Hint: hint})
}

// statusOf is the status of an error, and what to do about it.
func statusOf(err error) (status int, hint string) {
	if errors.Is(err, errHeader) {
		return http.StatusForbidden, ""
	}
	switch registry.KindOf(err) {
	case registry.ErrInvalid:
		return http.StatusBadRequest, ""
	case registry.ErrUnauthenticated:
		return http.StatusUnauthorized, `send "Authorization: Bearer TOKEN" with the token in DATA/` + AdminFile + `, or one of an account that is granted "admin *"`
	case registry.ErrDenied:
		return http.StatusForbidden, `whoever administers has to be granted "admin *", and a token with rights has to have that one`
	case registry.ErrNotFound:
		return http.StatusNotFound, ""
	case registry.ErrConflict:
		return http.StatusConflict, ""
	case registry.ErrTooLarge:
		return http.StatusRequestEntityTooLarge, ""
	case registry.ErrLimited:
		return http.StatusTooManyRequests, ""
	}
	return http.StatusServiceUnavailable, "the metadata database does not answer, or this node has not heard of a change yet; its log says more. Whether it was done is not certain: look, and try again"
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// A client that is gone hears nothing.
	_ = json.NewEncoder(w).Encode(v)
}
