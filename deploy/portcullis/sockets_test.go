package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// pass puts n sockets at consecutive descriptors, as whoever starts a process does.
func pass(t *testing.T, n int) (first int, addresses []string) {
	t.Helper()
	first = 600
	for i := range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		file, err := ln.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Dup3(int(file.Fd()), first+i, 0); err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, ln.Addr().String())
		_, _ = file.Close(), ln.Close()
	}
	return first, addresses
}

func TestInherit(t *testing.T) {
	us := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		name  string
		env   map[string]string
		n     int
		want  []string // names for clients
		wrong string
	}{
		{"nothing", nil, 0, nil, ""},
		{"by a service manager", map[string]string{"LISTEN_PID": us, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "https:metrics"}, 2, []string{"https"}, ""},
		{"without a name", map[string]string{"LISTEN_PID": us, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "portcullis-dataplane.socket"}, 1, []string{"http"}, ""},
		{"for another process", map[string]string{"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}, 0, nil, ""},
		{"by a predecessor", map[string]string{successionEnv: "http:https:#lock:#ready"}, 4, []string{"http", "https"}, ""},
		{"twice the same", map[string]string{"LISTEN_PID": us, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:a"}, 2, nil, "each name once"},
		{"more than names", map[string]string{"LISTEN_PID": us, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, 2, nil, "FileDescriptorName="},
		{"no number", map[string]string{"LISTEN_PID": us, "LISTEN_FDS": "many"}, 0, nil, "LISTEN_FDS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, name := range []string{successionEnv, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
				t.Setenv(name, c.env[name])
			}
			first, addresses := pass(t, c.n)
			p, err := inherit(first)
			if c.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), c.wrong) {
					t.Error(err)
				}
				for i := range c.n {
					_ = syscall.Close(first + i)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			if got := p.names(); !slices.Equal(got, c.want) || p.successor != (c.env[successionEnv] != "") {
				t.Errorf("%q, successor %v", got, p.successor)
			}
			if _, there := os.LookupEnv("LISTEN_PID"); there {
				t.Error("a child would take the sockets for its own")
			}
			if len(c.want) == 0 {
				return
			}
			if err := p.left(); err == nil || !strings.Contains(err.Error(), c.want[0]) {
				t.Errorf("sockets that nobody serves: %v", err)
			}
			ln, err := p.listen(c.want[0], "")
			if err != nil {
				t.Fatal(err)
			}
			if got := ln.Addr().String(); got != addresses[0] {
				t.Errorf("%s is at %s, not %s", c.want[0], got, addresses[0])
			}
			_ = ln.Close()
		})
	}
}

// What the service manager is told to run exists, with all its flags and sockets.
func TestUnits(t *testing.T) {
	const dir = "../systemd"
	service, err := os.ReadFile(filepath.Join(dir, "portcullis-dataplane.service"))
	if err != nil {
		t.Fatal(err)
	}
	_, start, _ := strings.Cut(string(service), "ExecStart=/usr/bin/portcullis ")
	start, _, _ = strings.Cut(start, "\n")
	words := strings.Fields(start)
	cmd, _, err := newRoot().Find(words[:1])
	if err != nil || cmd.Name() != words[0] {
		t.Fatal(words, err)
	}
	for _, word := range words[1:] {
		if name, flag := strings.CutPrefix(word, "--"); flag && cmd.Flags().Lookup(name) == nil {
			t.Errorf("%s has no flag --%s", words[0], name)
		}
	}
	socket, err := os.ReadFile(filepath.Join(dir, "portcullis-dataplane.socket"))
	if err != nil {
		t.Fatal(err)
	}
	_, name, _ := strings.Cut(string(socket), "FileDescriptorName=")
	name, _, _ = strings.Cut(name, "\n")
	if !socketName.MatchString(name) {
		t.Errorf("the socket's name is %q", name)
	}
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SYSTEMD-ANALYZE IS NOT INSTALLED: the units are not verified by what runs them")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copied := t.TempDir()
	for unit, text := range map[string][]byte{"portcullis-dataplane.service": service, "portcullis-dataplane.socket": socket} {
		text := strings.ReplaceAll(string(text), "/usr/bin/portcullis ", self+" ")
		if err := os.WriteFile(filepath.Join(copied, unit), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(verify, "verify", "--man=no", filepath.Join(copied, "portcullis-dataplane.service"), filepath.Join(copied, "portcullis-dataplane.socket")).CombinedOutput()
	for line := range strings.SplitSeq(string(out), "\n") {
		if strings.Contains(line, "portcullis") {
			t.Error(line)
		}
	}
	if err != nil && t.Failed() {
		t.Error(err)
	}
	t.Logf("%s: %v", verify, err)
}
