package account

import (
	"net/http"
	"slices"
	"time"

	"github.com/weir-registry/weir/registry"
)

// A Changed is the answer to a change that leaves nothing to be shown.
type Changed struct {
	Version uint64 `json:"version"`
}

// An AccountAnswer is an account as the admin API shows it.
type AccountAnswer struct {
	Name     string    `json:"name"`
	UID      string    `json:"uid"`
	Kind     string    `json:"kind"`
	Email    string    `json:"email,omitempty"`
	Teams    []string  `json:"teams,omitempty"` // by name
	Disabled bool      `json:"disabled"`
	Created  time.Time `json:"created"`
	Version  uint64    `json:"version,omitempty"` // of a change
}

// A TeamAnswer is a team as the admin API shows it.
type TeamAnswer struct {
	registry.Team
	Members []string `json:"members,omitempty"`
	Version uint64   `json:"version,omitempty"`
}

// A TokenAnswer is a token as the admin API shows it.
type TokenAnswer struct {
	registry.Token
	Version uint64 `json:"version,omitempty"`
}

// A GrantAnswer is a grant as the admin API shows it.
type GrantAnswer struct {
	registry.Grant
	Version uint64 `json:"version,omitempty"`
}

// A Listing is what the admin API answers where it lists: one of these is there.
type Listing struct {
	Users  []AccountAnswer         `json:"users,omitzero"`
	Robots []AccountAnswer         `json:"robots,omitzero"`
	Teams  []registry.Team         `json:"teams,omitzero"`
	Tokens []registry.Token        `json:"tokens,omitzero"`
	Grants []registry.Grant        `json:"grants,omitzero"`
	Nodes  []registry.NodeStanding `json:"nodes,omitzero"`
}

// An AccountRequest asks for a user or a robot.
type AccountRequest struct {
	Name     string `json:"name"`
	Email    string `json:"email,omitempty"`
	Password string `json:"password,omitempty"`
}

// A PasswordRequest sets a password.
type PasswordRequest struct {
	Password string `json:"password"`
}

// A DisabledRequest disables or enables an account.
type DisabledRequest struct {
	Disabled bool `json:"disabled"`
}

// A TeamRequest asks for a team.
type TeamRequest struct {
	Name string `json:"name"`
}

// A TokenRequest asks for a token of an account.
type TokenRequest struct {
	Owner string `json:"owner"`
	registry.TokenSpec
}

// Whoami is who asks.
type Whoami struct {
	Name  string `json:"name"`
	UID   string `json:"uid"`
	Token string `json:"token"`
	Node  string `json:"node"` // the node that answers
}

func (h *admin) whoami(_ http.ResponseWriter, c *caller) (any, error) {
	return Whoami{Name: c.by.Who.Name, UID: c.by.Who.UID, Token: c.by.Who.Token, Node: h.o.Node}, nil
}

// shown is an account with its teams by name; those that are gone are left out.
func shown(acc registry.Account, teams map[string]string, version uint64) AccountAnswer {
	a := AccountAnswer{Name: acc.Name, UID: acc.UID, Kind: acc.Kind, Email: acc.Email, Disabled: acc.Disabled, Created: acc.Created, Version: version}
	for _, uid := range acc.Teams {
		if name, ok := teams[uid]; ok {
			a.Teams = append(a.Teams, name)
		}
	}
	slices.Sort(a.Teams)
	return a
}

func (h *admin) listAccounts(kind string) endpoint {
	return func(_ http.ResponseWriter, c *caller) (any, error) {
		accounts, err := h.a.ListAccounts(c.Context(), kind)
		if err != nil {
			return nil, err
		}
		teams, err := h.a.TeamNames(c.Context())
		if err != nil {
			return nil, err
		}
		all := []AccountAnswer{}
		for _, acc := range accounts {
			all = append(all, shown(acc, teams, 0))
		}
		if kind == registry.User {
			return Listing{Users: all}, nil
		}
		return Listing{Robots: all}, nil
	}
}

func (h *admin) addUser(_ http.ResponseWriter, c *caller) (any, error) {
	var req AccountRequest
	if err := c.decode(&req); err != nil {
		return nil, err
	}
	acc, version, err := h.a.AddUser(c.Context(), c.by, req.Name, req.Email, req.Password)
	return answer(shown(acc, nil, version), err)
}

func (h *admin) addRobot(_ http.ResponseWriter, c *caller) (any, error) {
	var req AccountRequest
	if err := c.decode(&req); err != nil {
		return nil, err
	}
	if req.Password != "" || req.Email != "" {
		return nil, registry.Errorf(registry.ErrInvalid, "a robot has neither a password nor an e-mail address")
	}
	acc, version, err := h.a.AddRobot(c.Context(), c.by, req.Name)
	return answer(shown(acc, nil, version), err)
}

// answer is v if there is no error.
func answer(v any, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (h *admin) showAccount(kind string) endpoint {
	return func(_ http.ResponseWriter, c *caller) (any, error) {
		acc, err := h.a.ShowAccount(c.Context(), kind, c.PathValue("name"))
		if err != nil {
			return nil, err
		}
		teams, err := h.a.TeamNames(c.Context())
		return answer(shown(acc, teams, 0), err)
	}
}

func (h *admin) removeAccount(kind string) endpoint {
	return func(_ http.ResponseWriter, c *caller) (any, error) {
		version, err := h.a.RemoveAccount(c.Context(), c.by, kind, c.PathValue("name"))
		return answer(Changed{version}, err)
	}
}

func (h *admin) setPassword(_ http.ResponseWriter, c *caller) (any, error) {
	var req PasswordRequest
	if err := c.decode(&req); err != nil {
		return nil, err
	}
	version, err := h.a.SetPassword(c.Context(), c.by, c.PathValue("name"), req.Password)
	return answer(Changed{version}, err)
}

func (h *admin) setDisabled(_ http.ResponseWriter, c *caller) (any, error) {
	var req DisabledRequest
	if err := c.decode(&req); err != nil {
		return nil, err
	}
	version, err := h.a.setDisabled(c.Context(), c.by, c.PathValue("name"), req.Disabled)
	return answer(Changed{version}, err)
}

func (h *admin) listTeams(_ http.ResponseWriter, c *caller) (any, error) {
	teams, err := h.a.ListTeams(c.Context())
	return answer(Listing{Teams: teams}, err)
}

func (h *admin) addTeam(_ http.ResponseWriter, c *caller) (any, error) {
	var req TeamRequest
	if err := c.decode(&req); err != nil {
		return nil, err
	}
	team, version, err := h.a.AddTeam(c.Context(), c.by, req.Name)
	return answer(TeamAnswer{Team: team, Version: version}, err)
}

func (h *admin) showTeam(_ http.ResponseWriter, c *caller) (any, error) {
	team, members, err := h.a.ShowTeam(c.Context(), c.PathValue("name"))
	return answer(TeamAnswer{Team: team, Members: members}, err)
}

func (h *admin) removeTeam(_ http.ResponseWriter, c *caller) (any, error) {
	version, err := h.a.RemoveTeam(c.Context(), c.by, c.PathValue("name"))
	return answer(Changed{version}, err)
}

func (h *admin) join(_ http.ResponseWriter, c *caller) (any, error) {
	version, err := h.a.AddMember(c.Context(), c.by, c.PathValue("name"), c.PathValue("account"))
	return answer(Changed{version}, err)
}

func (h *admin) leave(_ http.ResponseWriter, c *caller) (any, error) {
	version, err := h.a.RemoveMember(c.Context(), c.by, c.PathValue("name"), c.PathValue("account"))
	return answer(Changed{version}, err)
}

func (h *admin) listTokens(_ http.ResponseWriter, c *caller) (any, error) {
	tokens, err := h.a.ListTokensOf(c.Context(), c.URL.Query().Get("owner"))
	return answer(Listing{Tokens: tokens}, err)
}

func (h *admin) createToken(_ http.ResponseWriter, c *caller) (any, error) {
	var req TokenRequest
	if err := c.decode(&req); err != nil {
		return nil, err
	}
	if req.Kind == exchange {
		return nil, registry.Errorf(registry.ErrInvalid, "tokens of the kind %q come from JWTs", exchange)
	}
	t, err := h.a.CreateTokenFor(c.Context(), c.by, req.Owner, req.TokenSpec)
	return answer(t, err)
}

func (h *admin) showToken(_ http.ResponseWriter, c *caller) (any, error) {
	id, err := h.a.tokenID(c.Context(), c.PathValue("id"))
	if err != nil {
		return nil, err
	}
	t, err := h.a.ShowToken(c.Context(), id)
	return answer(TokenAnswer{Token: t}, err)
}

func (h *admin) revokeToken(_ http.ResponseWriter, c *caller) (any, error) {
	id, err := h.a.tokenID(c.Context(), c.PathValue("id"))
	if err != nil {
		return nil, err
	}
	t, version, err := h.a.Revoke(c.Context(), c.by, id)
	return answer(TokenAnswer{Token: t, Version: version}, err)
}

func (h *admin) listGrants(_ http.ResponseWriter, c *caller) (any, error) {
	grants, err := h.a.ListGrants(c.Context(), c.URL.Query().Get("to"))
	return answer(Listing{Grants: grants}, err)
}

func (h *admin) grant(_ http.ResponseWriter, c *caller) (any, error) {
	var req GrantSpec
	if err := c.decode(&req); err != nil {
		return nil, err
	}
	g, version, err := h.a.Grant(c.Context(), c.by, req)
	return answer(GrantAnswer{Grant: g, Version: version}, err)
}

func (h *admin) revokeGrant(_ http.ResponseWriter, c *caller) (any, error) {
	g, version, err := h.a.RevokeGrant(c.Context(), c.by, c.PathValue("id"))
	return answer(GrantAnswer{Grant: g, Version: version}, err)
}

func (h *admin) rekey(_ http.ResponseWriter, c *caller) (any, error) {
	version, err := h.a.Rekey(c.Context(), c.by)
	return answer(Changed{version}, err)
}
