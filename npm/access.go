package npm

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

// privateCache is for what not everybody may have: no cache that is shared may
// keep it, and a client's own asks each time, because its right may have ended.
//
// There is no "Vary: Authorization" with it. No answer that is public depends
// on who asks, and npm's cache writes the request headers that Vary names into
// its index, so that the token would lie in a directory that CI systems keep
// and share.
const privateCache = "private, no-cache"

// call is r as the guard sees it.
func (h *handler) call(r *http.Request, q request, n registry.Name) registry.Call {
	return registry.Call{Who: q.who, Action: registry.Pull, Name: n, Agent: r.UserAgent(), Addr: registry.ClientAddr(r.RemoteAddr)}
}

// public reports whether anybody could have what c has been admitted to.
func (h *handler) public(ctx context.Context, c *registry.Call) bool {
	if c.Who.Anonymous() {
		return true
	}
	anybody := *c
	anybody.Who, anybody.Whether = registry.Principal{}, true
	return h.o.Service.Guard.Admit(ctx, &anybody) == nil
}

// cacheFor says for how long a client may use the answer to c without asking;
// not at all if it is old because nothing newer was to be had.
func (h *handler) cacheFor(w http.ResponseWriter, r *http.Request, c *registry.Call, via registry.Via, age time.Duration) {
	value := "public, max-age=" + strconv.Itoa(int(age/time.Second))
	switch {
	case !h.public(r.Context(), c):
		value = privateCache
	case via.Warning != "":
		value = "public, no-cache"
	}
	w.Header().Set("Cache-Control", value)
}

// hideSecrets keeps what is secret in a path below the base out of the log:
// tokens that are to be ended, and what logins are claimed with. It does not
// ask what the path means, because one that means nothing is logged too.
func hideSecrets(w http.ResponseWriter, prefix, path string) {
	plain, err := url.PathUnescape(path)
	if err != nil {
		plain = path
	}
	for _, before := range []string{"/user/token/", "/v1/login/", "/v1/done/", "/tokens/token/"} {
		if head, secret, ok := strings.Cut(plain, before); ok && secret != "" {
			reply.LogAs(w, prefix+head+before+"…")
			return
		}
	}
}
