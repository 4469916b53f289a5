package conformance_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// ociSecond is the registry that some clients pull from beside docker.io.
const ociSecond = "registry.example.test"

// pullLimit is how long one client may take for one image of a few megabytes,
// starting included, on a machine that does other things too.
const pullLimit = 2 * time.Minute

// An ociPuller is a real client in a clean state of its own: nothing pulled
// yet. It pulls REGISTRY/REPO:TAG through weir for linux and one architecture
// and reads the image's files.
type ociPuller func(t *testing.T, image, arch string) lab.Files

// An ociClientKind is one of the clients that must work.
type ociClientKind struct {
	name string
	// start makes a clean client that pulls through the weir at addr.
	start func(t *testing.T, addr string) ociPuller
	// second reports whether it can pull from ociSecond through a mirror too:
	// docker's mirrors are for docker.io alone.
	second bool
}

func ociClients() []ociClientKind {
	return []ociClientKind{
		{"dockerd", startDockerd, false},
		{"containerd", startContainerd, true},
		{"podman", startPodman, true},
		{"skopeo", startSkopeo, true},
		{"crane", startCrane, true},
	}
}

// TestOCIClients pulls a multi-layer, multi-arch image with every client: cold,
// again with a clean client, with the upstream gone, and with the upstream gone
// after a restart.
func TestOCIClients(t *testing.T) {
	hub, other := lab.StartRegistry(t), lab.StartRegistry(t)
	// The same name in both registries, with other files in it.
	index, hubFiles := lab.MakeIndex(t, lab.OCI(), "hub", 3<<20)
	lab.Push(t, hub.Addr, "library/thing:1", index)
	index, otherFiles := lab.MakeIndex(t, lab.Docker(), "other", 1<<20)
	lab.Push(t, other.Addr, "library/thing:1", index)
	want := map[string]map[string]lab.Files{"docker.io": hubFiles, ociSecond: otherFiles}

	for _, kind := range ociClients() {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			registries := []string{"docker.io"}
			if kind.second {
				registries = append(registries, ociSecond)
			}
			proxies := map[string]*lab.Proxy{
				"docker.io": lab.StartProxy(t, hub.URL), ociSecond: lab.StartProxy(t, other.URL),
			}
			w := lab.StartWeir(t, ociConfig("", "docker.io", proxies["docker.io"].URL, ociSecond, proxies[ociSecond].URL))
			pull := func(when string, archs ...string) {
				t.Helper()
				client := kind.start(t, w.Addr)
				for _, r := range registries {
					for _, arch := range archs {
						got := client(t, r+"/library/thing:1", arch)
						ociSame(t, fmt.Sprintf("%s, %s for %s", when, r, arch), got, want[r][arch])
					}
				}
			}

			pull("cold", "amd64", "arm64")
			for _, r := range registries {
				ociColdCost(t, r, proxies[r])
				proxies[r].Reset()
			}
			ociStale(t)
			pull("again", "amd64")
			for _, r := range registries {
				ociWarmCost(t, r, proxies[r])
				proxies[r].Down()
			}
			ociStale(t)
			pull("with the upstream gone", "amd64", "arm64")
			w.Restart()
			pull("after a restart with the upstream gone", "amd64", "arm64")
		})
	}
}

// ociColdCost fails the test if any blob or manifest was fetched twice.
func ociColdCost(t *testing.T, registry string, p *lab.Proxy) {
	t.Helper()
	gets := map[string]int{}
	for _, s := range p.Seen("GET", "") {
		if strings.Contains(s.Path, "sha256:") {
			gets[s.Path]++
		}
	}
	for path, n := range gets {
		if n > 1 {
			t.Errorf("%s: a cold pull fetched %s %d times\n%s", registry, path, n, p.Story())
		}
	}
	if p.Count("GET", "/blobs/") == 0 {
		t.Errorf("%s: nothing was fetched: the client did not pull through weir\n%s", registry, p.Story())
	}
}

// ociWarmCost fails the test if pulling a tag again cost more than asking once
// whether it has changed.
func ociWarmCost(t *testing.T, registry string, p *lab.Proxy) {
	t.Helper()
	if n := p.Count("", "/manifests/"); n > 1 || p.Bytes("", "") > 0 || p.Count("", "/blobs/") > 0 {
		t.Errorf("%s: pulling one tag again cost more than one question\n%s", registry, p.Story())
	}
}

// startContainerdProcess starts a containerd of the test's own and returns its
// socket.
func startContainerdProcess(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "containerd.sock")
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket)
	ociWrite(t, filepath.Join(dir, "config.toml"), config)
	p := lab.Start(t, lab.Command{Path: lab.Tool(t, "containerd"), Args: []string{"--config", filepath.Join(dir, "config.toml")}, Dir: dir})
	ociWaitSocket(t, p, "containerd", socket)
	return socket
}

func ociWaitSocket(t *testing.T, p *lab.Process, name, socket string) {
	t.Helper()
	lab.Eventually(t, time.Minute, name+" to listen", func() error {
		if !p.Running() {
			t.Fatalf("%s ended\n%s", name, p.Log())
		}
		c, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// startDockerd starts a docker daemon that has weir as its mirror.
func startDockerd(t *testing.T, addr string) ociPuller {
	t.Helper()
	config := t.TempDir()
	run, _ := startDockerCLI(t, addr)
	docker := func(t *testing.T, args ...string) string {
		t.Helper()
		r := run(t, config, "", args...)
		if r.Code != 0 {
			t.Fatalf("docker %v: status %d\n%s%s", args, r.Code, r.Stdout, r.Stderr)
		}
		return r.Stdout
	}
	return func(t *testing.T, image, arch string) lab.Files {
		t.Helper()
		docker(t, "pull", "--quiet", "--platform", "linux/"+arch, image)
		docker(t, "create", "--platform", "linux/"+arch, "--name", "of-"+arch, image, "/bin/true")
		files := lab.Files{}
		ociUntar(t, strings.NewReader(docker(t, "export", "of-"+arch)), files)
		return files
	}
}

// A dockerCommand runs docker, with a directory for its configuration and what is
// on its standard input.
type dockerCommand func(t *testing.T, config, in string, args ...string) lab.Result

// startDockerCLI starts a docker daemon that has weir as its mirror, and gives
// the docker command for it and the daemon. What the daemon does not get from a
// loopback address it gets from nowhere.
func startDockerCLI(t *testing.T, addr string) (dockerCommand, *lab.Process) {
	t.Helper()
	containerd := startContainerdProcess(t)
	dir := t.TempDir()
	socket := filepath.Join(dir, "docker.sock")
	ociWrite(t, filepath.Join(dir, "daemon.json"), "{}")
	nowhere := []string{"HTTP_PROXY=http://127.0.0.1:1", "HTTPS_PROXY=http://127.0.0.1:1", "NO_PROXY=127.0.0.0/8"}
	p := lab.Start(t, lab.Command{Path: lab.Tool(t, "dockerd"), Dir: dir, Env: nowhere, Args: []string{
		"--config-file", filepath.Join(dir, "daemon.json"), "--containerd", containerd,
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "docker.pid"), "--host", "unix://" + socket,
		// Pulling needs no network of its own, and vfs works on every file system.
		"--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs",
		"--registry-mirror", "http://" + addr,
	}})
	ociWaitSocket(t, p, "dockerd", socket)
	return func(t *testing.T, config, in string, args ...string) lab.Result {
		t.Helper()
		return ociPiped(t, in, lab.Command{Path: lab.Tool(t, "docker"), Args: append([]string{"--host", "unix://" + socket}, args...),
			Env: []string{"DOCKER_CONFIG=" + config, "HOME=" + dir}})
	}, p
}

// startContainerd starts a containerd with a hosts.toml for each registry: one
// weir for all of them, which containerd tells the registry by ns=.
func startContainerd(t *testing.T, addr string) ociPuller {
	t.Helper()
	socket := startContainerdProcess(t)
	hosts := t.TempDir()
	for _, r := range []string{"docker.io", ociSecond} {
		ociWrite(t, filepath.Join(hosts, r, "hosts.toml"), fmt.Sprintf(
			"server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "https://"+r, "http://"+addr))
	}
	ctr := func(t *testing.T, args ...string) {
		t.Helper()
		lab.Run(t, pullLimit, lab.Command{Path: lab.Tool(t, "ctr"), Args: append([]string{"--address", socket}, args...)})
	}
	return func(t *testing.T, image, arch string) lab.Files {
		t.Helper()
		ctr(t, "images", "pull", "--hosts-dir", hosts, "--snapshotter", "native", "--platform", "linux/"+arch, image)
		mount := t.TempDir()
		ctr(t, "images", "mount", "--snapshotter", "native", "--platform", "linux/"+arch, image, mount)
		defer ctr(t, "images", "unmount", "--snapshotter", "native", "--rm", mount)
		return ociReadDir(t, mount)
	}
}

// startPodman makes a podman with weir as the mirror of each registry, which
// it tells apart by the path.
func startPodman(t *testing.T, addr string) ociPuller {
	t.Helper()
	dir := t.TempDir()
	ociWriteRegistries(t, dir, addr)
	podman := func(t *testing.T, args ...string) string {
		t.Helper()
		return lab.Run(t, pullLimit, lab.Command{Path: lab.Tool(t, "podman"), Args: append([]string{
			"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"),
			"--tmpdir", filepath.Join(dir, "tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
			"--events-backend", "file",
		}, args...), Env: []string{"CONTAINERS_REGISTRIES_CONF=" + filepath.Join(dir, "registries.conf"), "HOME=" + dir}}).Stdout
	}
	return func(t *testing.T, image, arch string) lab.Files {
		t.Helper()
		podman(t, "pull", "--quiet", "--arch", arch, image)
		mount := strings.TrimSpace(podman(t, "image", "mount", image))
		defer podman(t, "image", "unmount", image)
		return ociReadDir(t, mount)
	}
}

// startSkopeo makes a skopeo that copies into a directory.
func startSkopeo(t *testing.T, addr string) ociPuller {
	t.Helper()
	dir := t.TempDir()
	ociWriteRegistries(t, dir, addr)
	return func(t *testing.T, image, arch string) lab.Files {
		t.Helper()
		to := t.TempDir()
		lab.Run(t, pullLimit, lab.Command{Path: lab.Tool(t, "skopeo"), Args: []string{
			"--insecure-policy", "--registries-conf", filepath.Join(dir, "registries.conf"), "--override-arch", arch,
			"copy", "docker://" + image, "dir:" + to}, Env: []string{"HOME=" + dir}})
		var m struct{ Layers []struct{ Digest string } }
		if err := json.Unmarshal([]byte(ociRead(t, filepath.Join(to, "manifest.json"))), &m); err != nil {
			t.Fatal(err)
		}
		files := lab.Files{}
		for _, l := range m.Layers {
			blob := ociRead(t, filepath.Join(to, strings.TrimPrefix(l.Digest, "sha256:")))
			if got := ociDigest([]byte(blob)); got != l.Digest {
				t.Errorf("layer %s hashes to %s", l.Digest, got)
			}
			ociUntar(t, strings.NewReader(blob), files)
		}
		return files
	}
}

// startCrane makes a crane, which knows no mirrors: it names weir itself, and
// the registry that is not weir's default by the path.
func startCrane(t *testing.T, addr string) ociPuller {
	t.Helper()
	return func(t *testing.T, image, arch string) lab.Files {
		t.Helper()
		tar := lab.Run(t, pullLimit, lab.Command{Path: lab.Tool(t, "crane"), Args: []string{
			"export", "--platform", "linux/" + arch, addr + "/" + strings.TrimPrefix(image, "docker.io/"), "-"},
			Env: []string{"HOME=" + t.TempDir()}})
		files := lab.Files{}
		ociUntar(t, strings.NewReader(tar.Stdout), files)
		return files
	}
}

// ociWriteRegistries writes a registries.conf with weir as the mirror of
// docker.io and of ociSecond.
func ociWriteRegistries(t *testing.T, dir, addr string) {
	t.Helper()
	var b strings.Builder
	for _, r := range []string{"docker.io", ociSecond} {
		fmt.Fprintf(&b, "[[registry]]\nprefix = %q\nlocation = %q\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n\n",
			r, r, addr+"/"+r)
	}
	ociWrite(t, filepath.Join(dir, "registries.conf"), b.String())
}

// ociReadDir reads the regular files under dir.
func ociReadDir(t *testing.T, dir string) lab.Files {
	t.Helper()
	files := lab.Files{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var rel string
			if rel, err = filepath.Rel(dir, path); err == nil {
				files[rel] = ociRead(t, path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func ociRead(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func ociWrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
