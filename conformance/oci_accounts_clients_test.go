package conformance_test

import (
	"path/filepath"
	"testing"

	"github.com/weir-registry/weir/conformance/lab"
)

// dockerLogin is docker with a daemon of the test's own. The daemon talks to
// registries on loopback addresses without TLS.
func dockerLogin(t *testing.T, addr string) ociLoginClient {
	docker, _ := startDockerCLI(t, addr)
	dir := t.TempDir()
	run := func(t *testing.T, in string, args ...string) lab.Result {
		t.Helper()
		return docker(t, filepath.Join(dir, "config"), in, args...)
	}
	return ociLoginClient{
		login: func(t *testing.T, user, password string) lab.Result {
			return run(t, password, "login", "--username", user, "--password-stdin", addr)
		},
		logout: func(t *testing.T) lab.Result { return run(t, "", "logout", addr) },
		pull: func(t *testing.T, image, _, _ string) lab.Result {
			run(t, "", "rmi", "--force", addr+"/"+image)
			return run(t, "", "pull", addr+"/"+image)
		},
		config: filepath.Join(dir, "config", "config.json"), session: true,
	}
}

// ociPiped is a command with in on its standard input.
func ociPiped(t *testing.T, in string, c lab.Command) lab.Result {
	t.Helper()
	file := filepath.Join(t.TempDir(), "in")
	ociWrite(t, file, in)
	c.Args = append([]string{"-c", `exec "$0" "$@" <"$WEIR_IN"`, c.Path}, c.Args...)
	c.Path, c.Env = lab.Tool(t, "sh"), append(c.Env, "WEIR_IN="+file)
	return lab.Try(t, pullLimit, c)
}

func podmanLogin(t *testing.T, addr string) ociLoginClient {
	dir := t.TempDir()
	auth := filepath.Join(dir, "auth.json")
	ociWrite(t, auth, "{}")
	ociWrite(t, filepath.Join(dir, "registries.conf"), "")
	run := func(t *testing.T, in string, args ...string) lab.Result {
		t.Helper()
		return ociPiped(t, in, lab.Command{Path: lab.Tool(t, "podman"), Args: append([]string{
			"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"),
			"--tmpdir", filepath.Join(dir, "tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
			"--events-backend", "file",
		}, args...), Env: []string{"CONTAINERS_REGISTRIES_CONF=" + filepath.Join(dir, "registries.conf"), "HOME=" + dir, "REGISTRY_AUTH_FILE=" + auth}})
	}
	return ociLoginClient{
		login: func(t *testing.T, user, password string) lab.Result {
			return run(t, password, "login", "--tls-verify=false", "--username", user, "--password-stdin", addr)
		},
		logout: func(t *testing.T) lab.Result { return run(t, "", "logout", addr) },
		pull: func(t *testing.T, image, _, _ string) lab.Result {
			run(t, "", "rmi", "--force", addr+"/"+image)
			return run(t, "", "pull", "--tls-verify=false", addr+"/"+image)
		},
		config: auth, loginSays: "invalid username/password",
	}
}

func craneLogin(t *testing.T, addr string) ociLoginClient {
	dir := t.TempDir()
	run := func(t *testing.T, in string, args ...string) lab.Result {
		t.Helper()
		return ociPiped(t, in, lab.Command{Path: lab.Tool(t, "crane"), Args: args, Env: []string{"HOME=" + dir, "DOCKER_CONFIG=" + dir}})
	}
	return ociLoginClient{
		login: func(t *testing.T, user, password string) lab.Result {
			return run(t, password, "auth", "login", "--username", user, "--password-stdin", addr)
		},
		logout: func(t *testing.T) lab.Result { return run(t, "", "auth", "logout", addr) },
		pull: func(t *testing.T, image, _, _ string) lab.Result {
			return run(t, "", "pull", addr+"/"+image, filepath.Join(t.TempDir(), "image.tar"))
		},
		config: filepath.Join(dir, "config.json"),
	}
}

func skopeoLogin(t *testing.T, addr string) ociLoginClient {
	dir := t.TempDir()
	auth := filepath.Join(dir, "auth.json")
	ociWrite(t, auth, "{}")
	ociWrite(t, filepath.Join(dir, "registries.conf"), "")
	return ociLoginClient{pull: func(t *testing.T, image, user, password string) lab.Result {
		args := []string{"--insecure-policy", "--registries-conf", filepath.Join(dir, "registries.conf"), "copy", "--src-tls-verify=false"}
		if user != "" {
			args = append(args, "--src-creds", user+":"+password)
		}
		return lab.Try(t, pullLimit, lab.Command{Path: lab.Tool(t, "skopeo"), Env: []string{"HOME=" + dir, "REGISTRY_AUTH_FILE=" + auth},
			Args: append(args, "docker://"+addr+"/"+image, "dir:"+t.TempDir())})
	}}
}

func ctrLogin(t *testing.T, addr string) ociLoginClient {
	socket := startContainerdProcess(t)
	return ociLoginClient{terse: true, lazy: true, pull: func(t *testing.T, image, user, password string) lab.Result {
		ctr := func(args ...string) lab.Result {
			return lab.Try(t, pullLimit, lab.Command{Path: lab.Tool(t, "ctr"), Args: append([]string{"--address", socket}, args...)})
		}
		ctr("images", "rm", "--sync", addr+"/"+image)
		args := []string{"images", "pull", "--plain-http", "--snapshotter", "native"}
		if user != "" {
			args = append(args, "--user", user+":"+password)
		}
		return ctr(append(args, addr+"/"+image)...)
	}}
}
