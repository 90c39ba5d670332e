package listen

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity/certtest"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// served tells whether a socket answers in clear text.
func (r *rig) served(t *testing.T, name string) bool {
	t.Helper()
	conn, err := net.Dial("tcp", r.lns[name].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	// A socket that is not served may reset before this is out.
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Fatalf("socket %s: neither served nor closed", name)
		}
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == 200
}

func (r *rig) problem(name string) string {
	for _, c := range r.Conditions(time.Now()) {
		if c.Name == name {
			return c.Problem
		}
	}
	return "no condition"
}

// TestSockets: a socket is served when the Gateway says how, and else fails
// closed, with a condition that says why. Only "http" needs no word.
func TestSockets(t *testing.T) {
	ca := certtest.New(t, "ca")
	pair := ca.Issue(t, certtest.Spec{Hosts: []string{"a.example"}})
	r := start(t, Config{Log: discard()}, "http", "internal", "https")
	expect := func(name string, served bool, problem string) {
		t.Helper()
		if got := r.served(t, name); got != served {
			t.Errorf("%s: served in clear text: %t", name, got)
		}
		if got := r.problem(name); got != problem {
			t.Errorf("%s: %q; want %q", name, got, problem)
		}
	}
	for _, name := range []string{"internal", "https"} {
		expect(name, false, "no configuration yet")
	}
	expect("http", true, "")
	r.use(t)
	expect("http", true, "")
	expect("internal", false, `the Gateway has no listener "internal"`)
	internal := &configv1.Listener{Name: "internal"}
	r.use(t, gateway(internal, https(nil, "a")), certificate("a", pair))
	expect("http", true, "")
	expect("internal", true, "")
	expect("https", false, "")
	client := r.client(t, "https", &tls.Config{RootCAs: ca.Pool()})
	if status, text := get(t, client, "https://a.example/"); status != 200 || text != "https a.example sni=a.example alpn=" {
		t.Errorf("%d %q", status, text)
	}
	// A listener is taken away: who is connected goes on, nobody else gets in.
	r.use(t, gateway(internal))
	expect("https", false, `the Gateway has no listener "https"`)
	if status, _ := get(t, client, "https://a.example/"); status != 200 {
		t.Error("an established connection was cut")
	}
	if _, err := r.shake(t, "https", &tls.Config{ServerName: "a.example"}); err == nil {
		t.Error("a handshake on a listener that is gone")
	}
	if got := r.Stats(); got.Handshakes == 0 || got.Unserved == 0 || got.Failed == 0 {
		t.Errorf("%+v", got)
	}
	// "http" can be made TLS, and then is nothing else.
	r.use(t, gateway(&configv1.Listener{Name: "http", Tls: &configv1.ListenerTLS{Certificates: []string{"a"}}}), certificate("a", pair))
	expect("http", false, "")
}

// TestIssued: a listener whose certificate has not come yet refuses clearly, and
// shows it once it has.
func TestIssued(t *testing.T) {
	pair := certtest.New(t, "ca").Issue(t, certtest.Spec{Hosts: []string{"shop.example"}})
	old := time.Now().Add(-time.Minute)
	expired := certtest.New(t, "ca").Issue(t, certtest.Spec{Hosts: []string{"shop.example"}, NotBefore: old.Add(-time.Hour), NotAfter: old})
	r := start(t, Config{Log: discard()}, "https", "http")
	state := func(i *configv1.IssuedCertificate) {
		t.Helper()
		checked, err := config.Check([]*configv1.Resource{certificate("given", expired)})
		if err != nil {
			t.Fatal(err)
		}
		declared := &configv1.Certificate{Acme: &configv1.ACME{Hostnames: []string{"shop.example"}, TermsAgreed: true}}
		s := &Settings{listeners: map[string]*spoken{}, certificates: map[string]*shown{}}
		all := []*shown{}
		one, err := show(declared, i)
		missing := []string(nil)
		if err != nil {
			missing = []string{err.Error()}
		} else {
			all = append(all, one)
		}
		built, err := s.listener(checked, nil, https(nil, "given"), r.protocols())
		if err != nil {
			t.Fatal(err)
		}
		*built.store, built.missing = *newStore(all), missing
		s.listeners["https"], s.listeners["http"] = built, &spoken{}
		r.Apply(s)
	}
	state(nil)
	_, err := r.shake(t, "https", &tls.Config{ServerName: "shop.example"})
	if err == nil || !strings.Contains(err.Error(), "unrecognized name") || !strings.Contains(r.problem("https"), "not been issued yet") {
		t.Errorf("%v, %q", err, r.problem("https"))
	}
	state(&configv1.IssuedCertificate{Certificate: pair.CertPEM, PrivateKey: pair.KeyPEM})
	if _, err := r.shake(t, "https", &tls.Config{ServerName: "shop.example"}); err != nil || r.problem("https") != "" {
		t.Errorf("%v, %q", err, r.problem("https"))
	}
	r.use(t, gateway(https(nil, "given")), certificate("given", expired))
	if !strings.Contains(r.problem("https"), "expired") {
		t.Errorf("%q", r.problem("https"))
	}
}

// TestChallenges: an authority gets the answer to the exact token of an order, in
// clear text, and nobody anything else.
func TestChallenges(t *testing.T) {
	ca := certtest.New(t, "ca")
	r := start(t, Config{}, "http", "https")
	r.use(t, gateway(https(nil, "a")), certificate("a", ca.Issue(t, certtest.Spec{Hosts: []string{"a.example"}})),
		&configv1.Resource{Metadata: &configv1.Metadata{Workspace: "default", Name: "a"}, Spec: &configv1.Resource_IssuedCertificate{
			IssuedCertificate: &configv1.IssuedCertificate{Challenges: []*configv1.ACMEChallenge{{Token: "t0_-ken", KeyAuthorization: "t0_-ken.print"}}}}})
	clear := r.client(t, "http", nil)
	do := func(method, path string) (status int, length int64, text string) {
		t.Helper()
		req, err := http.NewRequest(method, "http://a.example"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := clear.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, resp.ContentLength, string(b)
	}
	if status, _, text := do("GET", challengePath+"t0_-ken"); status != 200 || text != "t0_-ken.print" {
		t.Errorf("%d %q", status, text)
	}
	if status, length, text := do("HEAD", challengePath+"t0_-ken"); status != 200 || length != 13 || text != "" {
		t.Errorf("%d %d %q", status, length, text)
	}
	for _, c := range [][2]string{
		{"POST", challengePath + "t0_-ken"}, {"GET", challengePath + "T0_-ken"}, {"GET", challengePath},
		{"GET", challengePath + "t0_-ken/x"}, {"GET", challengePath + "t0_-ke"}, {"GET", "/x" + challengePath + "t0_-ken"},
	} {
		if _, _, text := do(c[0], c[1]); strings.Contains(text, "print") {
			t.Errorf("%s %s: %q", c[0], c[1], text)
		}
	}
	if _, text := get(t, r.client(t, "https", &tls.Config{RootCAs: ca.Pool()}), "https://a.example"+challengePath+"t0_-ken"); strings.Contains(text, "print") {
		t.Errorf("under TLS: %q", text)
	}
	// The order is done.
	r.use(t, gateway())
	if _, _, text := do("GET", challengePath+"t0_-ken"); strings.Contains(text, "print") {
		t.Errorf("afterwards: %q", text)
	}
}

// TestSlowHandshakes: who does not come to an end is cut, and holds up nobody.
func TestSlowHandshakes(t *testing.T) {
	ca := certtest.New(t, "ca")
	r := start(t, Config{HandshakeTimeout: 500 * time.Millisecond, Handshakes: 2}, "https")
	r.use(t, gateway(https(nil, "a")), certificate("a", ca.Issue(t, certtest.Spec{Hosts: []string{"a.example"}})))
	var slow sync.WaitGroup
	for _, first := range []string{"", "\x16\x03\x01\x00\xff\x01"} {
		conn, err := net.Dial("tcp", r.lns["https"].Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, first)
		slow.Go(func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			var timeout net.Error
			if _, err := io.Copy(io.Discard, conn); errors.As(err, &timeout) && timeout.Timeout() {
				t.Error("a handshake without end was not cut")
			}
		})
	}
	slow.Wait()
	if _, err := r.shake(t, "https", &tls.Config{ServerName: "a.example"}); err != nil {
		t.Error(err)
	}
	if got := r.Stats().Failed; got != 2 {
		t.Errorf("%d failed", got)
	}
}

// TestHandshakePlaces: one more than there is room for ends the oldest, so that who
// sends nothing keeps out nobody.
func TestHandshakePlaces(t *testing.T) {
	r := start(t, Config{Handshakes: 2}, "https")
	r.use(t, gateway(https(nil, "a")), certificate("a", certtest.New(t, "ca").Issue(t, certtest.Spec{Hosts: []string{"a.example"}})))
	taken := func() int {
		r.shakes.mu.Lock()
		defer r.shakes.mu.Unlock()
		return r.shakes.taken.Len()
	}
	until := func(n int) {
		t.Helper()
		for end := time.Now().Add(patience); taken() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d places are taken, not %d", taken(), n)
			}
		}
	}
	var holders []net.Conn
	for i := range 2 {
		holder, err := net.Dial("tcp", r.lns["https"].Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer holder.Close()
		holders = append(holders, holder)
		until(i + 1)
	}
	if _, err := r.shake(t, "https", &tls.Config{ServerName: "a.example"}); err != nil {
		t.Error("holders keep others out:", err)
	}
	_ = holders[0].SetReadDeadline(time.Now().Add(patience))
	if _, err := holders[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the oldest:", err)
	}
	until(1)
	_ = holders[1].Close()
	until(0)
}

// TestFragmentedHello: a ClientHello in records of one byte each means the same.
func TestFragmentedHello(t *testing.T) {
	ca := certtest.New(t, "ca")
	r := start(t, Config{}, "https")
	r.use(t, gateway(https(nil, "a", "b")),
		certificate("a", ca.Issue(t, certtest.Spec{Name: "a", Hosts: []string{"a.example"}})),
		certificate("b", ca.Issue(t, certtest.Spec{Name: "b", Hosts: []string{"b.example"}})))
	for _, size := range []int{1, 5, 100} {
		raw, err := net.Dial("tcp", r.lns["https"].Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.SetDeadline(time.Now().Add(patience))
		// X25519 alone, since a hello with ML-KEM would be a thousand records.
		conn := tls.Client(&fragmenting{Conn: raw, size: size}, &tls.Config{
			ServerName: "b.example", InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.X25519},
		})
		if err := conn.Handshake(); err != nil {
			t.Errorf("fragments of %d: %v", size, err)
		} else if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != "b" {
			t.Errorf("fragments of %d: shown %q", size, got)
		}
		_ = raw.Close()
	}
}

// fragmenting sends the first record as many, in as many segments.
type fragmenting struct {
	net.Conn
	size int
	done bool
}

func (c *fragmenting) Write(b []byte) (int, error) {
	if c.done {
		return c.Conn.Write(b)
	}
	c.done = true
	const header = 5
	n := int(b[3])<<8 | int(b[4])
	payload, rest := b[header:header+n], b[header+n:]
	for len(payload) > 0 {
		part := payload[:min(c.size, len(payload))]
		payload = payload[len(part):]
		record := append([]byte{b[0], b[1], b[2], byte(len(part) >> 8), byte(len(part))}, part...)
		if _, err := c.Conn.Write(record); err != nil {
			return 0, err
		}
	}
	if len(rest) > 0 {
		if _, err := c.Conn.Write(rest); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func TestALPN(t *testing.T) {
	pair := certtest.New(t, "ca").Issue(t, certtest.Spec{Hosts: []string{"a.example"}})
	one, two := start(t, Config{}, "https"), start(t, Config{HTTP2: front(nil)}, "https")
	for _, r := range []*rig{one, two} {
		r.use(t, gateway(https(nil, "a")), certificate("a", pair))
	}
	for _, c := range []struct {
		r     *rig
		offer []string
		want  string
	}{
		{one, []string{"h2", "http/1.1"}, "http/1.1"}, {two, []string{"http/1.1", "h2"}, "h2"}, {two, []string{"http/1.1"}, "http/1.1"},
		{one, nil, ""}, {two, nil, ""}, {one, []string{"h2"}, "-"}, {two, []string{"spdy/3"}, "-"},
	} {
		conn, err := c.r.shake(t, "https", &tls.Config{ServerName: "a.example", NextProtos: c.offer})
		if c.want == "-" {
			if err == nil || !strings.Contains(err.Error(), "no application protocol") {
				t.Errorf("%v: %v", c.offer, err)
			}
		} else if err != nil || conn.ConnectionState().NegotiatedProtocol != c.want {
			t.Errorf("%v: %q, %v", c.offer, conn.ConnectionState().NegotiatedProtocol, err)
		}
	}
}

// TestIdleConnections: a thousand clients that say nothing after the handshake
// stay, are no burden to others, and go when the node does.
func TestIdleConnections(t *testing.T) {
	ca := certtest.New(t, "ca")
	r := start(t, Config{}, "https")
	r.use(t, gateway(https(nil, "a")), certificate("a", ca.Issue(t, certtest.Spec{Hosts: []string{"a.example"}})))
	const idle = 1000
	conns := make([]*tls.Conn, idle)
	client := &tls.Config{ServerName: "a.example", InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1),
		MaxVersion: tls.VersionTLS12} // whose sessions are resumed without reading: it is not handshakes that this is about
	if _, err := r.shake(t, "https", client); err != nil {
		t.Fatal(err)
	}
	var shaking sync.WaitGroup
	for worker := range 4 {
		shaking.Go(func() {
			for i := worker; i < idle; i += 4 {
				raw, err := net.Dial("tcp", r.lns["https"].Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				conns[i] = tls.Client(raw, client)
				if err := conns[i].Handshake(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	shaking.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if status, _ := get(t, r.client(t, "https", &tls.Config{RootCAs: ca.Pool()}), "https://a.example/"); status != 200 {
		t.Error(status)
	}
	for _, i := range []int{0, idle / 2, idle - 1} {
		_ = conns[i].SetDeadline(time.Now().Add(patience))
		if got := ask(t, conns[i], "a.example"); got != 200 {
			t.Errorf("connection %d: %d", i, got)
		}
	}
	r.stop()
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	for _, c := range conns {
		_ = c.NetConn().Close()
	}
}

func TestFiles(t *testing.T) {
	r := start(t, Config{}, "http", "https")
	files, err := r.Files()
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range files {
		again, err := net.FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		if again.Addr().String() != r.lns[name].Addr().String() {
			t.Errorf("%s is at %v", name, again.Addr())
		}
		if err := errors.Join(again.Close(), f.Close()); err != nil {
			t.Error(err)
		}
	}
	if len(files) != 2 || r.Address().String() != r.lns["http"].Addr().String() {
		t.Errorf("%d files, address %v", len(files), r.Address())
	}
	if _, err := New(Config{HTTP1: r.http1}, nil); err == nil {
		t.Error("no sockets")
	}
}
