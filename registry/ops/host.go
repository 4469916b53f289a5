package ops

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// ownName lets only those requests through to next that call this machine by a
// name nobody else can give it, if they come over the loopback interface: an
// address, or "localhost". A web page in a browser on this machine can have its
// own name lead to 127.0.0.1, and is then, for the browser, where it came from:
// it could read all there is here, and send what headers it likes.
func ownName(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if overLoopback(r) && !local(r.Host) {
			answer(w, http.StatusMisdirectedRequest, "over the loopback interface this is asked for by an address or as localhost, not by another name")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// overLoopback reports whether r came to an address of the loopback interface.
func overLoopback(r *http.Request) bool {
	addr, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if addr == nil {
		return false
	}
	ap, err := netip.ParseAddrPort(addr.String())
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// local reports whether a Host is an address, or localhost.
func local(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}
