#!/bin/sh
# Installs what the tests need and this machine lacks: real clients (docker,
# containerd, podman, skopeo, crane; pnpm, yarn 1, yarn berry, bun), a real
# registry, servers of buckets (versitygw, fake-gcs-server) and of tables
# (dynalite), an issuer of JWTs (oidc-provider), and nginx to compare with. Meant for Debian 12 with Go and Node
# installed. What is there already is left alone, so running it again costs a
# fraction of a second. Go and npm tools go under .tools/ in the repository.
set -eu

CRANE=v0.22.1
DISTRIBUTION=v3.1.2
PNPM=10.34.8
YARN=1.22.22
BERRY=4.18.1
DYNALITE=4.0.0
BUN=1.4.5
VERSITYGW=v1.8.0
FAKEGCS=v1.56.1
OIDCPROVIDER=9.13.3

cd "$(dirname "$0")/.."
tools=$PWD/.tools
export PATH="$PATH:/usr/sbin:/sbin:/usr/local/sbin:/usr/local/bin:/usr/local/go/bin"
log=
trap 'test -z "$log" || rm -f "$log"' EXIT

say() { printf 'setup: %s\n' "$*"; }
fail() {
	printf 'setup: %s\n' "$*" >&2
	exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# quiet runs a command whose output matters only if it fails.
quiet() {
	log=$(mktemp)
	if ! "$@" >"$log" 2>&1 </dev/null; then
		tail -n 30 "$log" >&2
		fail "failed: $*"
	fi
	rm -f "$log"
	log=
}

# stamped says whether the tools named by the version list $2 were installed.
stamped() { test -f "$tools/$1.stamp" && test "$(cat "$tools/$1.stamp")" = "$2"; }
stamp() { printf '%s\n' "$2" >"$tools/$1.stamp"; }

mkdir -p "$tools/bin"

have go || fail "go is missing: install the Go toolchain that go.mod names"
have npm || fail "npm is missing: install Node 18 or newer with npm"

# --- apt: a program, and the package that has it -----------------------------
missing=
need() { have "$1" || missing="$missing $2"; }
need dockerd docker.io
need docker docker.io
need containerd containerd
need ctr containerd
need runc runc
need podman podman
need skopeo skopeo
need nginx nginx-light
need ip iproute2
need mount mount
need git git
need make make
need gcc gcc
test -f /etc/ssl/certs/ca-certificates.crt || missing="$missing ca-certificates"
if test -n "$missing"; then
	packages=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
	have apt-get || fail "missing, and there is no apt-get to install them with: $packages"
	test "$(id -u)" = 0 || fail "missing, and only root can install them: apt-get install --no-install-recommends $packages"
	say "installing with apt: $packages"
	export DEBIAN_FRONTEND=noninteractive
	# A policy that forbids starting services: the tests start their own.
	policy=/usr/sbin/policy-rc.d
	test -e "$policy" || { printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made_policy=yes; }
	quiet apt-get update
	quiet apt-get install -y --no-install-recommends $packages
	test -z "${made_policy:-}" || rm -f "$policy"
fi

# --- Go: the registry and the buckets behind weir, and one more client -----------------------
# GOFLAGS is cleared: a -mod or -race meant for weir must not reach them.
go_tool() { # binary, package@version
	stamped "$1" "$2" && test -x "$tools/bin/$1" && return
	say "building $2"
	(cd / && GOFLAGS= GOBIN="$tools/bin" GOWORK=off quiet go install "$2")
	stamp "$1" "$2"
}
go_tool crane "github.com/google/go-containerregistry/cmd/crane@$CRANE"
go_tool registry "github.com/distribution/distribution/v3/cmd/registry@$DISTRIBUTION"
go_tool versitygw "github.com/versity/versitygw/cmd/versitygw@$VERSITYGW"
go_tool fake-gcs-server "github.com/fsouza/fake-gcs-server@$FAKEGCS"

# --- npm: the other package managers -----------------------------------------
npm_tools() { # directory under .tools, packages
	dir=$1
	shift
	stamped "$dir" "$*" && return
	say "installing with npm: $*"
	rm -rf "${tools:?}/$dir"
	mkdir -p "$tools/$dir"
	printf '{"private":true}\n' >"$tools/$dir/package.json"
	quiet npm install --prefix "$tools/$dir" --save-exact --no-audit --no-fund --loglevel=error "$@"
	stamp "$dir" "$*"
}
npm_tools npm "pnpm@$PNPM" "yarn@$YARN" "bun@$BUN"
# Berry's command is called yarn too, so it has a directory of its own.
npm_tools berry "@yarnpkg/cli-dist@$BERRY"
ln -sf ../berry/node_modules/@yarnpkg/cli-dist/bin/yarn.js "$tools/bin/yarn-berry"
# An issuer of JWTs. It is a library; the test of registry/oidc has the script.
npm_tools oidc "oidc-provider@$OIDCPROVIDER"
# A server and no client, so it has one too.
npm_tools dynalite "dynalite@$DYNALITE"
ln -sf ../dynalite/node_modules/dynalite/cli.js "$tools/bin/dynalite"

# --- Is it all there, and does it run? ---------------------------------------
for tool in dockerd docker containerd ctr podman skopeo nginx ip; do
	have "$tool" || fail "$tool is still missing after installing"
done
for tool in bin/crane bin/registry bin/versitygw bin/fake-gcs-server bin/yarn-berry npm/node_modules/.bin/pnpm npm/node_modules/.bin/yarn npm/node_modules/.bin/bun bin/dynalite; do
	test -x "$tools/$tool" || fail "$tool is still missing: remove $tools and try again"
done
test -f "$tools/oidc/node_modules/oidc-provider/package.json" || fail "oidc-provider is still missing: remove $tools/oidc.stamp and try again"
say "the tools for the tests are there"
