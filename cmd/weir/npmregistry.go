package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"
)

// askNPM is how long npm may take to say which registry it uses.
const askNPM = 20 * time.Second

// findRegistry says which registry the npm upstream without a url is: the
// flag's, or what npm says on this machine. Once npm has been told to use this
// weir, its answer is this weir; then it is the one that npm said before,
// which is remembered in a file.
func findRegistry(ctx context.Context, c *Config, flag, memory string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	said, err := npmSays(ctx)
	if err == nil && !c.isSelf(said) {
		if err := os.WriteFile(memory, []byte(said+"\n"), 0o600); err != nil {
			return "", fmt.Errorf("remember npm's registry: %w", err)
		}
		return said, nil
	}
	if text, rerr := os.ReadFile(memory); rerr == nil {
		if before := strings.TrimSpace(string(text)); checkURL("", before) == nil && !c.isSelf(before) {
			return before, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("npm is set to use %s, which is this weir", said)
	}
	return "", fmt.Errorf("%w; say which registry is behind it with --registry or npm.upstreams.NAME.url", err)
}

// npmSays is what "npm config get registry" answers, run where no project's
// own configuration is in force.
func npmSays(ctx context.Context) (string, error) {
	path, err := exec.LookPath("npm")
	if err != nil {
		return "", errors.New("there is no npm on this machine to ask which registry it uses")
	}
	ctx, cancel := context.WithTimeout(ctx, askNPM)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "config", "get", "registry")
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "NO_UPDATE_NOTIFIER=1", "npm_config_update_notifier=false")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("npm config get registry: %w", err)
	}
	said := strings.TrimSpace(string(out))
	if err := checkURL("npm config get registry", said); err != nil {
		return "", err
	}
	return said, nil
}

// isSelf reports whether an address is one that this node answers at.
func (c *Config) isSelf(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	if c.PublicURL != "" {
		if own, err := url.Parse(c.PublicURL); err == nil && own.Host == u.Host {
			return true
		}
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || portOf(u) != port {
		return false
	}
	own, asked := net.ParseIP(host), net.ParseIP(u.Hostname())
	local := u.Hostname() == "localhost" || asked != nil && asked.IsLoopback()
	switch {
	case host == "" || own != nil && own.IsUnspecified():
		name, _ := os.Hostname()
		return local || u.Hostname() == name || isOwnIP(asked)
	case host == "localhost" || own != nil && own.IsLoopback():
		return local
	}
	return host == u.Hostname() || own != nil && own.Equal(asked)
}

func portOf(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

func isOwnIP(ip net.IP) bool {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
			return true
		}
	}
	return false
}
