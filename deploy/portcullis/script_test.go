package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

// TestMain makes the test binary the command `portcullis` as well, so that what
// is tested are processes, without building a second binary.
func TestMain(m *testing.M) {
	// A raced process sleeps a second before it exits, and there are a hundred.
	if err := os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" "+noExitSleep)); err != nil {
		panic(err)
	}
	testscript.Main(leakChecked{m}, map[string]func(){"portcullis": main})
}

const noExitSleep = "atexit_sleep_ms=0"

type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// server is a role of portcullis running in a process of its own.
type server struct {
	cmd *exec.Cmd
	// out is what it printed up to its addresses.
	out    string
	err    *lockedBuffer
	exited chan error
}

type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

const startLimit = time.Minute

// startServer runs `portcullis args` and returns when it has printed a line that
// holds until, or fails with what it said.
func startServer(dir string, env []string, until, stdin string, args ...string) (*server, error) {
	s := &server{cmd: exec.Command("portcullis", args...), err: &lockedBuffer{}, exited: make(chan error, 1)}
	s.cmd.Dir, s.cmd.Env, s.cmd.Stderr, s.cmd.Stdin = dir, env, s.err, strings.NewReader(stdin)
	if path, err := exec.LookPath("portcullis"); err == nil {
		s.cmd.Path = path
	}
	reader, writer := io.Pipe()
	s.cmd.Stdout = writer
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		err := s.cmd.Wait()
		_ = writer.Close()
		s.exited <- err
	}()
	said := make(chan string, 1)
	go func() {
		lines, found, text := bufio.NewScanner(reader), false, ""
		for lines.Scan() {
			if text += lines.Text() + "\n"; !found && strings.Contains(lines.Text(), until) {
				found = true
				said <- text
			}
		}
		if !found {
			said <- ""
		}
	}()
	timer := time.NewTimer(startLimit)
	defer timer.Stop()
	select {
	case s.out = <-said:
	case <-timer.C:
	}
	if s.out == "" {
		_ = s.cmd.Process.Kill()
		return nil, fmt.Errorf("portcullis %s did not start: %v\n%s", strings.Join(args, " "), <-s.exited, s.err)
	}
	return s, nil
}

// stop asks the process to end, as Ctrl-C does, and returns how it ended.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	timer := time.NewTimer(startLimit)
	defer timer.Stop()
	select {
	case err := <-s.exited:
		if err != nil {
			return fmt.Errorf("%w\n%s", err, s.err)
		}
		return nil
	case <-timer.C:
		_ = s.cmd.Process.Kill()
		return fmt.Errorf("did not stop within %s of an interrupt: %v\n%s", startLimit, <-s.exited, s.err)
	}
}

var printed = regexp.MustCompile(`(?m)^  (node(?: \d+)?|admin|control|metrics|listen)\s+(\S+)$`)

// addresses returns what the process printed of one kind, without the scheme.
func (s *server) addresses(kind string) []string {
	var found []string
	for _, match := range printed.FindAllStringSubmatch(s.out, -1) {
		if strings.HasPrefix(match[1], kind) {
			_, host, ok := strings.Cut(match[2], "://")
			if !ok {
				host = match[2]
			}
			found = append(found, host)
		}
	}
	return found
}

// startStandalone starts a cluster on free ports with its data in dir/data.
func startStandalone(dir string, env []string, flags ...string) (*server, error) {
	args := append([]string{"standalone", "--data-dir", filepath.Join(dir, "data"), "--listen", "127.0.0.1:0",
		"--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--log-level", "warn"}, flags...)
	return startServer(dir, env, "  context ", "", args...)
}

// TestScripts runs testdata/*.txtar: each tries the command line with right and
// wrong input, and says what it must answer.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("PORTCULLIS_CONTEXT", "")
			env.Setenv("GORACE", noExitSleep)
			return os.Mkdir(filepath.Join(env.WorkDir, "home"), 0o700)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"standalone": scriptStandalone, "server": scriptServer, "signal": scriptSignal, "halt": scriptHalt,
			"revision": scriptRevision, "context-of": scriptContextOf,
			"exits": scriptExits, "fetch": scriptFetch, "capture": scriptCapture, "mode": scriptMode,
		},
	})
}

// scriptEnv is the environment of the script's commands.
func scriptEnv(ts *testscript.TestScript) []string {
	return []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "TMPDIR=" + ts.Getenv("TMPDIR"), "GORACE=" + noExitSleep}
}

// standalone [flags]: start a cluster; NODE1.. are its nodes, PORTCULLIS_CONTEXT
// its context. At the script's end it must stop cleanly.
func scriptStandalone(ts *testscript.TestScript, _ bool, args []string) {
	s, err := startStandalone(ts.MkAbs("."), scriptEnv(ts), args...)
	ts.Check(err)
	ts.Defer(func() {
		if err := s.stop(); err != nil {
			ts.Fatalf("standalone: %v", err)
		}
	})
	for i, address := range s.addresses("node") {
		ts.Setenv("NODE"+strconv.Itoa(i+1), address)
	}
	ts.Setenv("PORTCULLIS_CONTEXT", ts.MkAbs("data/context.yaml"))
}

// server NAME UNTIL args...: start a role and wait for a line that holds UNTIL;
// NAME_control and NAME_listen are its addresses, NAME_pid its process. What the
// command before printed is its standard input.
func scriptServer(ts *testscript.TestScript, _ bool, args []string) {
	s, err := startServer(ts.MkAbs("."), scriptEnv(ts), args[1], ts.ReadFile("stdout"), args[2:]...)
	ts.Check(err)
	stop := sync.OnceFunc(func() {
		_ = s.cmd.Process.Signal(syscall.SIGCONT)
		if err := s.stop(); err != nil {
			ts.Fatalf("%s: %v", args[0], err)
		}
	})
	ts.Defer(stop)
	servers.Store(ts.Name()+"/"+args[0], stop)
	ts.Setenv(args[0]+"_pid", strconv.Itoa(s.cmd.Process.Pid))
	if control := s.addresses("control"); len(control) > 0 {
		ts.Setenv(args[0]+"_control", control[0])
	}
}

// servers are the stop functions of the scripts' servers, by script and name.
var servers sync.Map

// halt NAME: stop a server, as Ctrl-C does; it must end cleanly.
func scriptHalt(ts *testscript.TestScript, _ bool, args []string) {
	stop, ok := servers.Load(ts.Name() + "/" + args[0])
	if !ok {
		ts.Fatalf("no server %s", args[0])
	}
	stop.(func())()
}

// signal stop|continue PID
func scriptSignal(ts *testscript.TestScript, _ bool, args []string) {
	pid, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(syscall.Kill(pid, map[string]syscall.Signal{"stop": syscall.SIGSTOP, "continue": syscall.SIGCONT}[args[0]]))
}

// exits CODE command...: the command ends with exactly this code.
func scriptExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%s exited with %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// capture NAME: the last command's standard output becomes a variable.
func scriptCapture(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// revision REASON: REVISION is the revision that the history gives that reason.
func scriptRevision(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec("portcullis", "history"))
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if strings.HasSuffix(strings.TrimSpace(line), args[0]) {
			ts.Setenv("REVISION", strings.Fields(line)[0])
			return
		}
	}
	ts.Fatalf("no revision for the reason %q", args[0])
}

// context-of FILE: ADMIN is the context's address, ca.pem its authorities.
func scriptContextOf(ts *testscript.TestScript, _ bool, args []string) {
	file, err := (&cli{contextFile: ts.MkAbs(args[0])}).readContext()
	ts.Check(err)
	ts.Setenv("ADMIN", file.Address)
	ts.Check(os.WriteFile(ts.MkAbs("ca.pem"), []byte(file.CA), 0o600))
}

// mode FILE OCTAL
func scriptMode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}

// fetch URL [Name:value...]: GET; the status, X-Request-Id and body go to
// standard output, and the request's id to the variable REQUEST.
func scriptFetch(ts *testscript.TestScript, _ bool, args []string) {
	req, err := http.NewRequest(http.MethodGet, args[0], nil)
	ts.Check(err)
	for _, header := range args[1:] {
		name, value, _ := strings.Cut(header, ":")
		req.Header.Add(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	body, err := io.ReadAll(resp.Body)
	ts.Check(errors.Join(err, resp.Body.Close()))
	ts.Setenv("REQUEST", resp.Header.Get("X-Request-Id"))
	fmt.Fprintf(ts.Stdout(), "%d\n%s\n", resp.StatusCode, body)
}
