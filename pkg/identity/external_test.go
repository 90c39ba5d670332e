package identity

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// write saves a member's certificate, key and authorities as three files.
func write(t *testing.T, dir string, l *Live) Files {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(l.State().Key)
	if err != nil {
		t.Fatal(err)
	}
	f := Files{CA: filepath.Join(dir, "ca.pem"), Certificate: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for path, data := range map[string][]byte{
		f.CA:          EncodePEM(l.State().Authorities),
		f.Certificate: EncodePEM(l.State().Certificates),
		f.Key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestFiles(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	sf := write(t, t.TempDir(), member(t, ca, Controlplane, "etcd", now, "etcd.example", "127.0.0.1"))
	cdir := t.TempDir()
	cf := write(t, cdir, member(t, ca, Controlplane, "client", now))
	cf.ServerName = "etcd.example"
	server, err := sf.Server()
	if err != nil {
		t.Fatal(err)
	}
	client, err := cf.Client()
	if err != nil {
		t.Fatal(err)
	}
	subject := func() string {
		t.Helper()
		cs, serverErr, clientErr := shake(t, server, client)
		if serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		return cs.PeerCertificates[0].Subject.CommonName
	}
	if got := subject(); got != "client" {
		t.Errorf("client is %q", got)
	}
	// A new pair is used without a restart; half a pair is passed over.
	os.WriteFile(cf.Certificate, []byte("half written"), 0o600)
	if got := subject(); got != "client" {
		t.Errorf("client is %q while its pair is being replaced", got)
	}
	write(t, cdir, member(t, ca, Controlplane, "renewed-client", now))
	if got := subject(); got != "renewed-client" {
		t.Errorf("client is %q after its pair was replaced", got)
	}
	client.ServerName = "other.example"
	if _, _, err := shake(t, server, client); err == nil || !strings.Contains(err.Error(), "other.example") {
		t.Errorf("wrong name: %v", err)
	}
	alone := Files{CA: cf.CA, ServerName: "etcd.example"}
	if client, err = alone.Client(); err != nil {
		t.Fatal(err)
	}
	if _, serverErr, _ := shake(t, server, client); serverErr == nil {
		t.Error("no client certificate, and let in")
	}
}

func TestFilesErrors(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now.Add(-48*time.Hour))
	good := write(t, t.TempDir(), member(t, ca, Controlplane, "a", now))
	other := write(t, t.TempDir(), member(t, ca, Controlplane, "b", now))
	old := write(t, t.TempDir(), member(t, ca, Controlplane, "c", now.Add(-25*time.Hour)))
	open := write(t, t.TempDir(), member(t, ca, Controlplane, "d", now))
	if err := os.Chmod(open.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	for want, f := range map[string]Files{
		"CA file: open":                   {CA: good.CA + ".absent"},
		"holds a PRIVATE KEY":             {CA: good.Key},
		"needs a key file":                {Certificate: good.Certificate},
		"needs a certificate file":        {Key: good.Key},
		"private key does not match":      {Certificate: good.Certificate, Key: other.Key},
		"expired at":                      {Certificate: old.Certificate, Key: old.Key},
		"which lets others in":            {Certificate: open.Certificate, Key: open.Key},
		"certificate and key files: stat": {Certificate: good.Certificate, Key: good.Key + ".absent"},
	} {
		_, err := f.Client()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("client: %v; want %q", err, want)
		}
		if _, err := f.Server(); err == nil {
			t.Errorf("server: no error; want %q", want)
		}
	}
	if _, err := (Files{CA: good.CA}).Server(); err == nil {
		t.Error("a server without a certificate")
	}
}

func TestUpstream(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	sf := write(t, t.TempDir(), member(t, ca, Controlplane, "up", now, "up.example"))
	server, err := sf.Server("http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	caPEM, cert, key := read(sf.CA), read(sf.Certificate), read(sf.Key)
	client, err := Upstream(caPEM, "up.example", cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, serverErr, err := shake(t, server, client); err != nil || serverErr != nil {
		t.Error(err, serverErr)
	}
	if client, err = Upstream("", "up.example", cert, key); err != nil {
		t.Fatal(err)
	}
	if _, _, err := shake(t, server, client); err == nil {
		t.Error("trusts an authority that nobody named")
	}
	for _, bad := range [][3]string{{"x", "", ""}, {"", cert, ""}, {"", "", key}, {"", cert, "x"}, {cert + key, "", ""}} {
		if _, err := Upstream(bad[0], "", bad[1], bad[2]); err == nil {
			t.Errorf("accepted %.20q", bad)
		} else if strings.Contains(err.Error(), "MIG") {
			t.Errorf("holds key material: %v", err)
		}
	}
}
