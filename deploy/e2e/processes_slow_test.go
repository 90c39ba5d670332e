//go:build slow

package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"portcullis.dev/portcullis/controlplane/store/etcdtest"
	"portcullis.dev/portcullis/pkg/bus"
)

// deployment is a cluster as it is deployed: every role a process of its own, on
// an etcd of three members and a NATS of three servers.
type deployment struct {
	t        *testing.T
	dir      string
	binary   string
	etcd     *etcdtest.Cluster
	nats     []*bus.Server
	natsURLs []string
	client   *http.Client
	up       *recorder
	running  map[string]*process
	// Where each control plane serves nodes and operators, and each node clients.
	control, admin, nodes []string
}

// process is one role.
type process struct {
	cmd  *exec.Cmd
	said lines
}

func deploy(t *testing.T, nodes int) *deployment {
	t.Helper()
	d := &deployment{
		t: t, dir: t.TempDir(), running: map[string]*process{}, up: newRecorder(t),
		client: &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}},
	}
	d.binary = filepath.Join(d.dir, "portcullis")
	if out, err := exec.Command("go", "build", "-o", d.binary, "../portcullis").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	// Members that have ended leave their peers' connections to time out.
	t.Cleanup(func() {
		for deadline := time.Now().Add(20 * time.Second); goleak.Find() != nil && time.Now().Before(deadline); {
		}
	})
	d.etcd = etcdtest.Start(t, etcdtest.Config{Members: 3})
	var routes []string
	for range 3 {
		s, err := bus.StartEmbedded(bus.ServerConfig{
			Listen: "127.0.0.1:0", Plaintext: true, Routes: &bus.RoutesConfig{Listen: "127.0.0.1:0", Peers: slices.Clone(routes)},
		})
		if err != nil {
			t.Fatal(err)
		}
		d.nats, d.natsURLs = append(d.nats, s), append(d.natsURLs, s.URL())
		routes = append(routes, s.RoutesAddr())
		t.Cleanup(func() { _ = s.Close() })
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	d.must("the sealing key", os.WriteFile(d.path("seal.key"), []byte(base64.StdEncoding.EncodeToString(key)+"\n"), 0o600))
	// Whatever happens, no process stays.
	t.Cleanup(func() {
		for name := range d.running {
			d.kill(name)
		}
	})
	for i := range 2 {
		d.control, d.admin = append(d.control, freeAddress(t)), append(d.admin, freeAddress(t))
		d.startControl(i)
	}
	for i := range nodes {
		d.nodes = append(d.nodes, freeAddress(t))
		d.startNode(i, d.cli(0, "", "join-token", "create"))
	}
	return d
}

func (d *deployment) path(name string) string { return filepath.Join(d.dir, name) }

func (d *deployment) must(what string, err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatalf("%s: %v", what, err)
	}
}

// run starts a role and waits until it says that it is ready.
func (d *deployment) run(name, stdin string, args ...string) {
	d.t.Helper()
	p := &process{cmd: exec.Command(d.binary, args...)}
	p.cmd.Dir, p.cmd.Stdin = d.dir, strings.NewReader(stdin)
	p.cmd.Stdout, p.cmd.Stderr = &p.said, &p.said
	d.must(name, p.cmd.Start())
	d.running[name] = p
	d.until(name+" is ready", func() error {
		if !p.said.have("ready\n") {
			return errors.New(p.said.String())
		}
		return nil
	})
}

func (d *deployment) startControl(i int) {
	d.t.Helper()
	name := fmt.Sprintf("cp%d", i+1)
	d.run(name, "", "controlplane", "--name", name, "--data-dir", d.path(name), "--seal-key", "file:"+d.path("seal.key"),
		"--control-listen", d.control[i], "--admin-listen", d.admin[i], "--context-out", d.path("context-0.yaml"),
		"--etcd-endpoints", strings.Join(d.etcd.Endpoints, ","), "--etcd-insecure-plaintext",
		"--nats-urls", strings.Join(d.natsURLs, ","), "--nats-insecure-plaintext")
	// The same operator, at this replica.
	text, err := os.ReadFile(d.path("context-0.yaml"))
	d.must("the context", err)
	text = regexp.MustCompile(`(?m)^address: .*$`).ReplaceAll(text, []byte("address: "+d.admin[i]))
	d.must("the context", os.WriteFile(d.path(fmt.Sprintf("context-%d.yaml", i)), text, 0o600))
}

func (d *deployment) startNode(i int, token string) {
	d.t.Helper()
	name := fmt.Sprintf("n%d", i+1)
	args := []string{"dataplane", "--name", name, "--data-dir", d.path(name), "--control", strings.Join(d.control, ","),
		"--listen", d.nodes[i], "--metrics-listen", "", "--nats-urls", strings.Join(d.natsURLs, ","), "--nats-insecure-plaintext", "--drain", "2s"}
	if token != "" {
		args = append(args, "--join-token", "-")
	}
	d.run(name, token, args...)
}

// kill ends a role as a crash does.
func (d *deployment) kill(name string) {
	p := d.running[name]
	delete(d.running, name)
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	if d.t.Failed() {
		d.t.Logf("%s said:\n%s", name, p.said.String())
	}
}

// try runs the command line at control plane i.
func (d *deployment) try(i int, stdin string, args ...string) (string, error) {
	cmd := exec.Command(d.binary, append([]string{"--context", d.path(fmt.Sprintf("context-%d.yaml", i))}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("portcullis %s: %w: %s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

func (d *deployment) cli(i int, stdin string, args ...string) string {
	d.t.Helper()
	out, err := d.try(i, stdin, args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

func (d *deployment) until(what string, f func() error) {
	d.t.Helper()
	(&harness{t: d.t}).until(what, f)
}

func (d *deployment) get(i int, path, token string) (answer, error) {
	req, err := http.NewRequest("GET", "http://"+d.nodes[i]+path, nil)
	if err != nil {
		return answer{}, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{Status: resp.StatusCode, Header: resp.Header, Body: string(data)}
	if resp.StatusCode >= 400 {
		err = json.Unmarshal(data, &a)
	}
	return a, err
}

// expect waits until every node answers so.
func (d *deployment) expect(path, token string, status int, reason string) (last answer) {
	d.t.Helper()
	for i := range d.nodes {
		d.until(fmt.Sprintf("node %d answers %d %s on %s", i+1, status, reason, path), func() error {
			a, err := d.get(i, path, token)
			if last = a; err == nil && (a.Status != status || a.Reason != reason) {
				err = fmt.Errorf("%d %s %s", a.Status, a.Reason, a.Body)
			}
			return err
		})
	}
	return last
}

// state is what `status` says.
type state struct {
	Revision json.Number
	Nodes    []struct {
		Name, Replica string
		Connected     bool
	}
	Replicas []string
}

func (d *deployment) status(i int) (s state) {
	d.t.Helper()
	out := d.cli(i, "", "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		d.t.Fatalf("%v in %s", err, out)
	}
	return s
}

// together waits until control plane i sees all nodes connected to a replica.
func (d *deployment) together(i int, replicas ...string) {
	d.t.Helper()
	d.until("all nodes follow", func() error {
		s := d.status(i)
		slices.Sort(s.Replicas)
		if !slices.Equal(s.Replicas, replicas) {
			return fmt.Errorf("replicas are %v, want %v", s.Replicas, replicas)
		}
		connected := 0
		for _, n := range s.Nodes {
			if n.Connected && slices.Contains(replicas, n.Replica) {
				connected++
			}
		}
		if connected != len(d.nodes) {
			return fmt.Errorf("%d nodes are connected: %+v", connected, s.Nodes)
		}
		return nil
	})
}

// traffic requests from all nodes until the returned function is called, which
// reports every request that failed. Nodes that are away are left out.
func (d *deployment) traffic(path, token string) (away func(i int, v bool), end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	out := make([]atomic.Bool, len(d.nodes))
	failed := make(chan string, 16)
	for i := range d.nodes {
		running.Go(func() {
			for ctx.Err() == nil {
				absent := out[i].Load()
				a, err := d.get(i, path, token)
				if (err != nil || a.Status != 200) && !absent && !out[i].Load() {
					select {
					case failed <- fmt.Sprintf("node %d: %d %s %v", i+1, a.Status, a.Reason, err):
					default:
					}
				}
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
	}
	end = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		close(failed)
		for f := range failed {
			d.t.Errorf("a request failed: %s", f)
		}
	})
	d.t.Cleanup(end)
	return func(i int, v bool) { out[i].Store(v) }, end
}

func (d *deployment) upstream() string {
	return fmt.Sprintf("\napiVersion: portcullis.dev/v1\nkind: Upstream\nmetadata: {name: up}\nspec: {endpoints: [{url: %q}]}\n---", d.up.URL)
}

// The tour and then the crashes, with every role in a process of its own.
func TestSlowProcesses(t *testing.T) {
	d := deploy(t, 3)
	d.together(0, "cp1", "cp2")
	d.together(1, "cp1", "cp2")

	// Apply at one replica, everywhere.
	receipt := d.cli(0, d.upstream()+public+"---"+orders+"---"+fmt.Sprintf(limited, "split"), "apply", "-f", "-")
	if !strings.Contains(receipt, "3/3 nodes programmed") {
		t.Errorf("apply said %q", receipt)
	}
	first := d.status(1).Revision.String()
	mint := func(sub string) string {
		return d.cli(1, "", "token", "mint", "--sub", sub, "--scope", "orders:read", "--aud", "https://api.example")
	}
	alice := mint("alice")
	d.expect("/orders/1", alice, 200, "")
	denied := d.expect("/orders/1", "", 401, "credential_missing")
	// Whichever replica the node follows: each explains it.
	for i := range 2 {
		if why := d.cli(i, "", "why", denied.RequestID); !strings.Contains(why, "credential_missing") || !strings.Contains(why, "n3") {
			t.Errorf("replica %d explains: %s", i+1, why)
		}
	}
	mallory := mint("mallory")
	d.expect("/orders/1", mallory, 200, "")
	d.cli(1, "", "revoke", "--subject", "mallory", "-m", "left")
	d.expect("/orders/1", mallory, 401, "token_revoked")
	admitted := 0
	for i := range 300 {
		a, err := d.get(i%3, "/limited-split", "")
		d.must("a limited request", err)
		if a.Status == 200 {
			admitted++
		}
	}
	if admitted < 95 || admitted > 110 {
		t.Errorf("the limit of 100 admitted %d over three nodes", admitted)
	}
	d.cli(1, strings.ReplaceAll(public, "/public", "/moved"), "apply", "-f", "-")
	d.expect("/moved", "", 200, "")
	d.cli(0, "", "rollback", first)
	d.expect("/moved", "", 404, "no_route")
	d.expect("/public", "", 200, "")
	d.expect("/orders/1", mallory, 401, "token_revoked")

	// The crashes, under load on a route that bounds staleness: no request may see
	// any of them.
	away, end := d.traffic("/orders/1", alice)
	d.kill("cp1")
	d.cli(1, strings.ReplaceAll(public, "/public", "/survived"), "apply", "-f", "-")
	d.expect("/survived", "", 200, "")
	d.together(1, "cp2")

	d.must("stopping a NATS server", d.nats[0].Close())
	eve := mint("eve")
	d.expect("/orders/1", eve, 200, "")
	d.cli(1, "", "revoke", "--subject", "eve")
	d.expect("/orders/1", eve, 401, "token_revoked")

	bob := mint("bob")
	away(1, true)
	d.kill("n2")
	d.cli(1, "", "revoke", "--subject", "bob")
	d.startNode(1, "")
	// It has said that it is ready: what was revoked while it was gone is denied.
	if a, err := d.get(1, "/orders/1", bob); err != nil || a.Reason != "token_revoked" {
		t.Errorf("a node that came back: %d %s %v", a.Status, a.Reason, err)
	}
	d.expect("/survived", "", 200, "")
	d.expect("/orders/1", mallory, 401, "token_revoked")
	away(1, false)

	leader := d.etcd.Leader()
	d.etcd.Stop(leader)
	var acknowledged []string
	d.until("writes go on without the leader", func() error {
		name := fmt.Sprintf("written-%d", len(acknowledged))
		_, err := d.try(1, strings.NewReplacer("name: public", "name: "+name, "/public", "/"+name).Replace(public), "apply", "--no-wait", "-f", "-")
		if err == nil {
			acknowledged = append(acknowledged, name)
		}
		if len(acknowledged) < 5 {
			return fmt.Errorf("%d so far: %w", len(acknowledged), err)
		}
		return nil
	})
	for _, name := range acknowledged {
		d.expect("/"+name, "", 200, "")
	}
	d.etcd.Restart(t, leader)
	d.startControl(0)
	d.together(0, "cp1", "cp2")
	d.together(1, "cp1", "cp2")
	d.cli(0, strings.ReplaceAll(public, "/public", "/again"), "apply", "-f", "-")
	d.expect("/again", "", 200, "")
	for _, name := range acknowledged {
		d.expect("/"+name, "", 200, "")
	}
	end()

	// All end in order when told to.
	for _, name := range []string{"n1", "n2", "n3", "cp1", "cp2"} {
		p := d.running[name]
		delete(d.running, name)
		d.must("telling "+name, p.cmd.Process.Signal(syscall.SIGTERM))
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%s ended with %v:\n%s", name, err, p.said.String())
		}
	}
}
