package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A server is a cache under test, or the registry behind all of them.
type server struct {
	name  string
	addr  string
	token string // what its clients present; "": nothing
	cmd   *exec.Cmd
	log   string
	done  chan struct{}
}

// bench has what runs. All of it ends with stop.
type bench struct {
	dir     string
	origin  *server
	servers []*server // under test; nginx is the measure of the others
	image   image
}

// launch starts a program on a core and waits until it listens.
func (b *bench) launch(name, addr, core string, env []string, program string, args ...string) (*server, error) {
	path, err := find(program)
	if err != nil {
		return nil, err
	}
	s := &server{name: name, addr: addr, log: filepath.Join(b.dir, name+".log"), done: make(chan struct{})}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = exec.Command("taskset", append([]string{"-c", core, path}, args...)...)
	s.cmd.Dir, s.cmd.Env = b.dir, append(os.Environ(), env...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.cmd.Wait()
		close(s.done)
	}()
	return s, s.ready()
}

// ready waits until s listens.
func (s *server) ready() error {
	return s.until(func() error {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// readyz asks a weir's ops address: it listens before it is ready.
func readyz(ops string) error {
	resp, err := http.Get("http://" + ops + "/readyz")
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// until waits until ok.
func (s *server) until(ok func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(startWithin)
	defer limit.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
			continue
		case <-s.done:
		case <-limit.C:
		}
		log, _ := os.ReadFile(s.log)
		return fmt.Errorf("%s on %s: %w:\n%s", s.name, s.addr, err, log)
	}
}

func (s *server) stop() {
	// The group: nginx's worker dies with its master.
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(5 * time.Second):
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		<-s.done
	}
}

func (b *bench) stop() {
	for _, s := range b.servers {
		s.stop()
	}
	if b.origin != nil {
		b.origin.stop()
	}
}

// cpu is the processor time that s has used, user and system, its children's
// included: those of its process group that live.
func (s *server) cpu() (time.Duration, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	var ticks int64
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// proc(5): the name is in parentheses and may have spaces.
		_, rest, _ := strings.Cut(string(text), ") ")
		if i := strings.LastIndex(string(text), ") "); i >= 0 {
			rest = string(text)[i+2:]
		}
		f := strings.Fields(rest)
		if len(f) < 13 || f[2] != strconv.Itoa(s.cmd.Process.Pid) {
			continue
		}
		for _, i := range []int{11, 12} { // utime, stime
			n, err := strconv.ParseInt(f[i], 10, 64)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
	}
	if ticks == 0 {
		return 0, fmt.Errorf("%s has used no processor time", s.name)
	}
	return time.Duration(ticks) * time.Second / 100, nil // USER_HZ is 100 on every Linux that Go runs on
}

const (
	originAddr       = "127.0.0.1:7000"
	weirAddr         = "127.0.0.1:7001"
	weirOps          = "127.0.0.1:7002"
	distributionAddr = "127.0.0.1:7003"
	nginxAddr        = "127.0.0.1:7004"
	privateAddr      = "127.0.0.1:7005"
	privateOps       = "127.0.0.1:7006"
)

// start starts the registry, fills it, and starts the three caches before it.
// Each logs its accesses to a file, as it does in use.
func (b *bench) start() error {
	var err error
	distribution := func(name, addr, core, more string) (*server, error) {
		config := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: %q}\n  cache: {blobdescriptor: inmemory}\nhttp: {addr: %q}\n%s",
			filepath.Join(b.dir, name), addr, more)
		file, err := b.write(name+".yml", config)
		if err != nil {
			return nil, err
		}
		return b.launch(name, addr, core, []string{"OTEL_TRACES_EXPORTER=none"}, "registry", "serve", file)
	}
	if b.origin, err = distribution("origin", originAddr, loadCore, ""); err != nil {
		return err
	}
	if b.image, err = push("http://" + originAddr); err != nil {
		return err
	}
	n, err := b.nginx()
	if err != nil {
		return err
	}
	b.servers = append(b.servers, n)
	w, err := b.weir("weir", weirAddr, weirOps, `"pull oci:docker.io/*"`)
	if err != nil {
		return err
	}
	b.servers = append(b.servers, w)
	private, err := b.private()
	if err != nil {
		return err
	}
	b.servers = append(b.servers, private)
	d, err := distribution("distribution", distributionAddr, serverCore, "proxy: {remoteurl: \"http://"+originAddr+"\"}\n")
	if err != nil {
		return err
	}
	b.servers = append(b.servers, d)
	for _, s := range b.servers {
		for range 2 { // once to fill it, once to be sure that a hit is right too
			if err := b.image.check("http://"+s.addr, s.token); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return nil
}

// weir starts one on which everybody may pull what anonymous says.
func (b *bench) weir(name, addr, ops, anonymous string) (*server, error) {
	bin, err := weirBinary()
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf("listen: %s\nops: %s\ndata: %q\noci:\n  default: docker.io\n  upstreams:\n    docker.io: {url: \"http://%s\", fresh: 1h}\naccess:\n  anonymous: [%s]\n",
		addr, ops, filepath.Join(b.dir, name), originAddr, anonymous)
	file, err := b.write(name+".yaml", config)
	if err != nil {
		return nil, err
	}
	return b.launch(name, addr, serverCore, nil, bin, "serve", "-c", file)
}

// private starts a weir on which only a robot may pull, which presents its token
// with every request.
func (b *bench) private() (*server, error) {
	const name = "weir-token"
	s, err := b.weir(name, privateAddr, privateOps, "")
	if err != nil {
		return nil, err
	}
	bin, err := weirBinary()
	if err == nil {
		err = s.until(func() error { return readyz(privateOps) })
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	var out []byte
	for _, args := range [][]string{
		{"robot", "add", "puller"},
		{"grant", "add", "puller", "pull oci:docker.io/*"},
		{"token", "create", "puller", "-o", "json"},
	} {
		cmd := exec.Command(bin, append(args, "-c", filepath.Join(b.dir, name+".yaml"))...)
		var why strings.Builder
		cmd.Stderr = &why
		if out, err = cmd.Output(); err != nil {
			s.stop()
			return nil, fmt.Errorf("weir %s: %w: %s", strings.Join(args, " "), err, why.String())
		}
	}
	var made struct{ Secret string }
	if err := json.Unmarshal(out, &made); err != nil || made.Secret == "" {
		s.stop()
		return nil, fmt.Errorf("weir token create answered %.200q: %w", out, err)
	}
	s.token = made.Secret
	return s, nil
}

// nginxConfig is what people put before a registry to cache it, with what is
// known to make it fast: one worker for one core, sendfile, open files kept.
const nginxConfig = `user root;
worker_processes 1;
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx-error.log warn;
events { worker_connections 4096; }
http {
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  keepalive_timeout 75s;
  keepalive_requests 100000000;
  access_log %[1]s/nginx-access.log combined buffer=64k;
  open_file_cache max=10000 inactive=10m;
  open_file_cache_valid 10m;
  client_body_temp_path %[1]s/nginx-body;
  proxy_temp_path %[1]s/nginx-temp;
  fastcgi_temp_path %[1]s/nginx-fastcgi;
  uwsgi_temp_path %[1]s/nginx-uwsgi;
  scgi_temp_path %[1]s/nginx-scgi;
  proxy_cache_path %[1]s/nginx-cache levels=1:2 keys_zone=registry:16m max_size=20g inactive=1d use_temp_path=off;
  server {
    listen %[2]s;
    location /v2/ {
      proxy_pass http://%[3]s;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_cache registry;
      proxy_cache_key $request_method$uri$http_accept;
      proxy_cache_valid 200 1h;
      proxy_cache_lock on;
      proxy_cache_use_stale error timeout updating http_500 http_502 http_503 http_504;
      add_header X-Cache $upstream_cache_status;
    }
  }
}
`

func (b *bench) nginx() (*server, error) {
	file, err := b.write("nginx.conf", fmt.Sprintf(nginxConfig, b.dir, nginxAddr, originAddr))
	if err != nil {
		return nil, err
	}
	return b.launch("nginx", nginxAddr, serverCore, nil, "nginx", "-p", b.dir, "-c", file)
}

func (b *bench) write(name, text string) (string, error) {
	path := filepath.Join(b.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}
