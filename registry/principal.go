package registry

// An Action is what a call wants to do.
type Action string

// The actions there are. Who may push may pull, and who may administer may do
// both; who is denied pulling is denied all three.
const (
	Pull  Action = "pull"
	Push  Action = "push"
	Admin Action = "admin"
)

// A Principal is who asks. The zero value is the anonymous principal.
type Principal struct {
	// Name is how the principal is called in grants and logs; "" is anonymous.
	// Users and robots share one set of names.
	Name string
	// UID is the account's, which an account of the same name that is made
	// later does not have. "" for anonymous and for nodes.
	UID string
	// Token is the ID of the token it is known by; "" for a password, for
	// anonymous and for nodes.
	Token string
	// Secret is the account's number of that name, as it was when the password was
	// checked; 0 for those that a token makes known. With another password the
	// account has another, and who was known by the old one is nobody.
	Secret int64
	// Only bounds what it may do in this call, whatever it is granted: a
	// short-lived token is issued for some rights alone. nil: no bound.
	Only []Right
	// Via is the node in front that says who this is, where this one has not seen
	// the password or the token itself; "" where it has. It is set by what takes
	// a node's questions, never by who asks them.
	Via string
	// Node reports that it is another weir, in front of this one, which has
	// admitted the client on whose behalf it asks.
	Node bool
}

// Anonymous reports whether p is nobody in particular.
func (p Principal) Anonymous() bool { return p.Name == "" && !p.Node }

// A Right is one action on one repository.
type Right struct {
	Action Action
	Space  string
	Repo   string
}
