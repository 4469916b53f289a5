package main

import (
	"fmt"
	"time"
)

// AccessConfig says who may do what, as far as it is not in the metadata
// database ("weir user", "weir grant").
type AccessConfig struct {
	// Anonymous is what clients may do at this node that say nothing about who
	// they are. Default: ["pull oci:*", "pull npm:*"].
	Anonymous []string `yaml:"anonymous"`
	// MaxStaleness is for how long a node may have heard nothing from the one
	// with the metadata database until past counts. Default: 1h.
	MaxStaleness *Duration  `yaml:"max_staleness"`
	Past         PastConfig `yaml:"past"`
	// Bearer is how long the short-lived tokens are good that container clients
	// fetch from /token. Default: 5m.
	Bearer *Duration `yaml:"bearer"`
	// OIDC are issuers whose JWTs can be exchanged for a token, so that a CI job
	// needs no secret. It counts where the metadata database is.
	OIDC []OIDCConfig `yaml:"oidc"`
}

// PastConfig is what a node does once max_staleness has passed, for each kind
// of call: "serve" goes on by what it knew last, "deny" answers 503.
type PastConfig struct {
	// Anonymous is for clients that say nothing about who they are.
	// Default: serve.
	Anonymous Policy `yaml:"anonymous"`
	// Pull is for pulls of users and robots. Default: serve.
	Pull Policy `yaml:"pull"`
	// Push is for whatever changes something. Default: deny.
	Push Policy `yaml:"push"`
	// Admin is for administration. Default: deny.
	Admin Policy `yaml:"admin"`
}

// A Policy is "serve" or "deny".
type Policy string

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Policy) UnmarshalText(text []byte) error {
	if *p = Policy(text); *p != "serve" && *p != "deny" {
		return fmt.Errorf("%q is neither serve nor deny", text)
	}
	return nil
}

// OIDCConfig is one issuer of JWTs.
type OIDCConfig struct {
	// Issuer is its address, as in its tokens' "iss":
	// "https://token.actions.githubusercontent.com".
	Issuer string `yaml:"issuer"`
	// Audience must be among its tokens' "aud".
	Audience string `yaml:"audience"`
	// JWKS is where its keys are. Default: what its discovery document says.
	JWKS string `yaml:"jwks"`
	// CA is a PEM file of what its certificate is signed by. Default: the
	// system's authorities.
	CA string `yaml:"ca"`
	// Rules say what its tokens stand for; the first that matches does.
	Rules []OIDCRule `yaml:"rules"`
}

// OIDCRule turns a JWT into a robot's token.
type OIDCRule struct {
	// Claims must all match: a claim's name, and a pattern with "*" in it.
	Claims map[string]string `yaml:"claims"`
	// Robot is whose token it becomes ("weir robot add").
	Robot string `yaml:"robot"`
	// Rights are what the token is for: "pull oci:ghcr.io/acme/*". Default: all
	// that the robot may.
	Rights []string `yaml:"rights"`
	// Lifetime is how long the token is good. Default: 15m.
	Lifetime *Duration `yaml:"lifetime"`
}

// AuditConfig is about the log of who was refused and what was changed.
type AuditConfig struct {
	// File is where it is; "off": none. Default: audit.log under data.
	File string `yaml:"file"`
	// Size is when a file is put aside and a new one begun. Default: 64MiB.
	Size Size `yaml:"size"`
	// Keep is how many of those put aside are kept. Default: 10.
	Keep int `yaml:"keep"`
	// Allowed says whether calls that were admitted are written down too: "yes"
	// or "no". Default: no.
	Allowed Toggle `yaml:"allowed"`
}

const auditOff = "off"

// setAccessDefaults fills in what was left out.
func (c *Config) setAccessDefaults() {
	a := &c.Access
	if a.Anonymous == nil {
		a.Anonymous = []string{"pull oci:*", "pull npm:*"}
	}
	setDuration(&a.MaxStaleness, time.Hour)
	setDuration(&a.Bearer, 5*time.Minute)
	setDefault(&a.Past.Anonymous, "serve")
	setDefault(&a.Past.Pull, "serve")
	setDefault(&a.Past.Push, "deny")
	setDefault(&a.Past.Admin, "deny")
	for i := range a.OIDC {
		for j := range a.OIDC[i].Rules {
			setDuration(&a.OIDC[i].Rules[j].Lifetime, 15*time.Minute)
		}
	}
	setDefault(&c.Audit.Size, 64<<20)
	setDefault(&c.Audit.Keep, 10)
	setDefault(&c.Audit.Allowed, "no")
}

// checkAccess checks access and audit beyond their form.
func (c *Config) checkAccess() error {
	if _, err := c.guard(); err != nil {
		return err
	}
	if t := time.Duration(*c.Access.MaxStaleness); t < 5*time.Second {
		return fmt.Errorf("access.max_staleness: %v is less than 5s, in which a node may well hear nothing", *c.Access.MaxStaleness)
	}
	if t := time.Duration(*c.Access.Bearer); t < time.Minute || t > 24*time.Hour {
		return fmt.Errorf("access.bearer: %v is not between 1m and 24h", *c.Access.Bearer)
	}
	if len(c.Access.OIDC) > 0 && len(c.Next) > 0 {
		return fmt.Errorf("access.oidc: it is the node with the metadata database that exchanges tokens, and this one has others behind it (next)")
	}
	if c.Audit.Size < 64<<10 {
		return fmt.Errorf("audit.size: %v is less than 64KiB", c.Audit.Size)
	}
	if c.Audit.Keep < 1 || c.Audit.Keep > 1000 {
		return fmt.Errorf("audit.keep: %d is not between 1 and 1000", c.Audit.Keep)
	}
	return c.checkOIDC()
}

func (c *Config) checkOIDC() error {
	for i, issuer := range c.Access.OIDC {
		key := fmt.Sprintf("access.oidc[%d]", i)
		if err := checkURL(key+".issuer", issuer.Issuer); err != nil {
			return err
		}
		switch {
		case issuer.Audience == "":
			return fmt.Errorf("%s: no audience: a token for somebody else would do", key)
		case len(issuer.Rules) == 0:
			return fmt.Errorf("%s: no rules, so its tokens stand for nobody", key)
		}
		for j, rule := range issuer.Rules {
			key := fmt.Sprintf("%s.rules[%d]", key, j)
			switch {
			case rule.Robot == "":
				return fmt.Errorf("%s: no robot whose token it becomes", key)
			case len(rule.Claims) == 0:
				return fmt.Errorf("%s: no claims: every token of the issuer would match", key)
			case time.Duration(*rule.Lifetime) < time.Minute || time.Duration(*rule.Lifetime) > 24*time.Hour:
				return fmt.Errorf("%s.lifetime: %v is not between 1m and 24h", key, *rule.Lifetime)
			}
			for _, text := range rule.Rights {
				right, err := parseRight(text)
				if err != nil {
					return fmt.Errorf("%s.rights: %w", key, err)
				}
				if why := c.matchesNothing(right); why != "" {
					return fmt.Errorf("%s.rights: %s", key, why)
				}
			}
		}
	}
	return nil
}
