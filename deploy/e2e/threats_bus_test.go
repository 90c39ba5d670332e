package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/revocation"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// intruder is whoever can reach the broker and has no key of the cluster. It
// speaks the NATS client protocol by hand, hears all, and says what it likes.
type intruder struct {
	t    *testing.T
	conn net.Conn
	read sync.WaitGroup

	mu    sync.Mutex
	heard []heard
}

type heard struct {
	subject string
	data    []byte
}

func intrude(t *testing.T, url string) *intruder {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	i := &intruder{t: t, conn: conn}
	i.say("CONNECT {\"verbose\":false,\"echo\":false}\r\nSUB portcullis.> 1\r\n")
	i.read.Go(i.listen)
	t.Cleanup(func() {
		_ = conn.Close()
		i.read.Wait()
	})
	return i
}

func (i *intruder) say(text string) {
	i.t.Helper()
	if _, err := io.WriteString(i.conn, text); err != nil {
		i.t.Fatal(err)
	}
}

func (i *intruder) listen() {
	reader := bufio.NewReader(i.conn)
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.Fields(line)
		switch {
		case len(words) == 1 && words[0] == "PING":
			_, _ = io.WriteString(i.conn, "PONG\r\n")
		case len(words) >= 4 && words[0] == "MSG":
			size, err := strconv.Atoi(words[len(words)-1])
			if err != nil {
				return
			}
			data := make([]byte, size+2)
			if _, err := io.ReadFull(reader, data); err != nil {
				return
			}
			i.mu.Lock()
			i.heard = append(i.heard, heard{words[1], data[:size]})
			i.mu.Unlock()
		}
	}
}

// on returns what was heard on subjects with the ending.
func (i *intruder) on(ending string) (all []heard) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, h := range i.heard {
		if strings.HasSuffix(h.subject, ending) {
			all = append(all, h)
		}
	}
	return all
}

func (i *intruder) publish(subject string, data []byte) {
	i.say(fmt.Sprintf("PUB %s %d\r\n%s\r\n", subject, len(data), data))
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// forgeries of a message: without envelope, without MAC, with a MAC of no key of
// the cluster, with a genuine envelope's MAC.
func forgeries(t *testing.T, m proto.Message, genuine *busv1.Envelope) [][]byte {
	payload := marshal(t, m)
	next := func(change func(*busv1.Envelope)) []byte {
		e := proto.CloneOf(genuine)
		e.Payload, e.Sequence = payload, genuine.Sequence+1000
		change(e)
		return marshal(t, e)
	}
	guess := hmac.New(sha256.New, make([]byte, 32))
	guess.Write(payload)
	return [][]byte{
		payload,
		next(func(e *busv1.Envelope) { e.Mac = nil }),
		next(func(*busv1.Envelope) {}),
		next(func(e *busv1.Envelope) { e.Mac = make([]byte, 32) }),
		next(func(e *busv1.Envelope) { e.Mac = guess.Sum(nil) }),
		next(func(e *busv1.Envelope) { e.KeyId = 0 }),
		next(func(e *busv1.Envelope) { e.KeyId = 99 }),
		next(func(e *busv1.Envelope) { e.Sender = "control-1" }),
		next(func(e *busv1.Envelope) { e.Sender = "" }),
		next(func(e *busv1.Envelope) { e.Boot++ }),
		next(func(e *busv1.Envelope) { e.Boot, e.Mac = 0, nil }),
		next(func(e *busv1.Envelope) { e.Mac = e.Mac[:16] }),
	}
}

var busDropped = regexp.MustCompile(`(?m)^portcullis_bus_dropped(?:\{[^}]*\})? (\d+)`)

func (h *harness) busDropped(i int) int {
	h.t.Helper()
	found := busDropped.FindStringSubmatch(h.metrics(i))
	if found == nil {
		h.t.Fatal("no metric of what the bus dropped")
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// Whoever reaches the broker can neither revoke nor un-revoke, neither vouch for
// freshness nor drain a limit; what it sends is dropped and counted.
func TestThreatsOnTheBus(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 2, BusListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0"})
	spy := intrude(t, h.BusURL())
	k := newES256(t, "k1")
	h.apply(issuerWith(k) + guarded("api", "ext", "https://api.example") +
		strings.Replace(guarded("fresh", "ext", "https://api.example"), "  matches:", "  revocation: {maxStaleness: 1s, onStale: deny}\n  matches:", 1) +
		routeYAML("limited", "public: true", "matches: [{path: {prefix: /limited}}]", "policies: [{rateLimit: {key: \"'one'\", limits: [{name: all, requests: 6, window: 1h}]}}]"))
	alice, bob := k.token("sub", "alice"), k.token("sub", "bob")
	for node := range 2 {
		h.until("the nodes hear each other", func() error {
			if n := h.Node(node).Limits().Nodes; n != 2 {
				return fmt.Errorf("node %d hears %d", node, n)
			}
			return nil
		})
	}
	if a := h.get(0, "/limited"); a.Status != 200 { // so that totals travel
		t.Fatalf("%+v", a)
	}
	if _, err := h.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Subject: "alice"}); err != nil {
		t.Fatal(err)
	}
	denied := func() error {
		for node := range 2 {
			if fault := refusalFault(h.get(node, "/api", authorization(alice)...), 401, "token_revoked"); fault != "" {
				return fmt.Errorf("node %d: %s", node, fault)
			}
		}
		return nil
	}
	h.until("alice is revoked", denied)
	h.until("the intruder has heard all kinds", func() error {
		for _, kind := range []string{".revoked", ".beat", ".spent"} {
			if len(spy.on(kind)) == 0 {
				return fmt.Errorf("nothing on %s", kind)
			}
		}
		return nil
	})
	genuine := map[string]*busv1.Envelope{}
	subject := map[string]string{}
	for _, kind := range []string{"revoked", "beat", "spent"} {
		one := spy.on("." + kind)[0]
		subject[kind], genuine[kind] = one.subject, &busv1.Envelope{}
		if err := proto.Unmarshal(one.data, genuine[kind]); err != nil {
			t.Fatal(err)
		}
	}
	// What travels holds no secret: neither the token nor whom it names.
	for _, one := range spy.on("") {
		for _, secret := range []string{alice, bob, "alice", "bob"} {
			if bytes.Contains(one.data, []byte(secret)) {
				t.Errorf("%s carries %q", one.subject, secret)
			}
		}
	}

	// What it would take to do harm, were it believed.
	bobs := revocation.KeyOf(controlv1.RevocationKind_REVOCATION_KIND_SUBJECT, "", "bob")
	alices := revocation.KeyOf(controlv1.RevocationKind_REVOCATION_KIND_SUBJECT, "", "alice")
	far := &controlv1.Version{Epoch: 1, Revision: 1 << 40}
	var key [16]byte
	var spent busv1.Spent
	if err := proto.Unmarshal(genuine["spent"].Payload, &spent); err != nil {
		t.Fatal(err)
	}
	for _, total := range spent.Totals {
		copy(key[:], total.Key)
	}
	harm := map[string][]proto.Message{
		"revoked": {
			&busv1.Revoked{Version: far, Entries: []*controlv1.Revocation{{Kind: controlv1.RevocationKind_REVOCATION_KIND_SUBJECT, Key: bobs[:], ExpiresAt: timestamppb.New(time.Now().Add(time.Hour))}}},
			&busv1.Revoked{Version: far, Entries: []*controlv1.Revocation{{Kind: controlv1.RevocationKind_REVOCATION_KIND_SUBJECT, Key: alices[:], RevokedBefore: timestamppb.New(time.Unix(1, 0)), ExpiresAt: timestamppb.New(time.Unix(2, 0))}}},
			&busv1.Revoked{Version: &controlv1.Version{Epoch: 1 << 40, Revision: 1}},
		},
		"beat": {&busv1.Beat{Head: far, Revocations: 0, Progress: 1 << 40}, &busv1.Beat{Head: &controlv1.Version{Epoch: 1 << 40, Revision: 1}, Progress: 1}},
		"spent": {&busv1.Spent{Now: 1 << 60, Totals: []*busv1.Total{{Key: key[:], Total: 1 << 40, Rate: 1e12, Missing: 1e12}}}, &busv1.Spent{Now: 1 << 60, Leaving: true},
			&busv1.Spent{Now: 1 << 60, Totals: []*busv1.Total{{Key: key[:], Total: -1 << 40, Rate: -1e12, Missing: -1e12}}}},
	}
	before := []int{h.busDropped(0), h.busDropped(1)}
	sent := 0
	attack := func() {
		for kind, messages := range harm {
			for _, m := range messages {
				for _, forged := range forgeries(t, m, genuine[kind]) {
					spy.publish(subject[kind], forged)
					sent++
				}
			}
			// A genuine message on another subject is not that subject's.
			for other := range harm {
				if other != kind {
					spy.publish(subject[other], marshal(t, genuine[kind]))
					sent++
				}
			}
		}
		// Replays of all that was heard.
		for _, one := range slices.Concat(spy.on(".revoked"), spy.on(".beat"), spy.on(".spent")) {
			spy.publish(one.subject, one.data)
		}
	}
	dropped := func() {
		t.Helper()
		h.until("what is forged is dropped and counted", func() error {
			for node := range 2 {
				if n := h.busDropped(node) - before[node]; n < sent {
					return fmt.Errorf("node %d dropped %d of %d", node, n, sent)
				}
			}
			return nil
		})
	}
	attack()
	for _, garbage := range []string{"", "\x00", strings.Repeat("\xff", 1000), "{}"} {
		for kind := range harm {
			spy.publish(subject[kind], []byte(garbage))
			sent++
		}
	}
	ask := strings.TrimSuffix(subject["beat"], "beat") + "ask." + base64.RawURLEncoding.EncodeToString([]byte("node-1"))
	spy.publish(ask, marshal(t, &busv1.Ask{Key: key[:], Cost: 1 << 40, Rate: 1, Capacity: 1}))
	dropped()
	for node := range 2 {
		if a := h.get(node, "/api", authorization(bob)...); a.Status != 200 {
			t.Errorf("node %d: bob was revoked by a forgery: %+v", node, a)
		}
		if a := h.get(node, "/fresh", authorization(bob)...); a.Status != 200 {
			t.Errorf("node %d: a forgery made it stale: %+v", node, a)
		}
		if n := h.Node(node).Limits().Nodes; n != 2 {
			t.Errorf("node %d hears %d nodes after forged farewells", node, n)
		}
	}
	if err := denied(); err != nil {
		t.Errorf("alice was un-revoked: %v", err)
	}
	for i := range 5 {
		if a := h.get(0, "/limited"); a.Status != 200 {
			t.Errorf("forged totals drained the limit at request %d: %+v", i+2, a)
		}
	}
	refused(t, "forged totals refilled the limit", h.get(0, "/limited"), 429, "limit_exceeded")

	// Without a control plane nobody vouches for freshness: not the replayed
	// heartbeats, not the forged ones.
	if err := h.StopControl(); err != nil {
		t.Fatal(err)
	}
	for node := range 2 {
		h.until("stale in spite of replayed heartbeats", func() error {
			attack()
			if fault := refusalFault(h.get(node, "/fresh", authorization(bob)...), 503, "revocations_stale"); fault != "" {
				return fmt.Errorf("node %d: %s", node, fault)
			}
			return nil
		})
		// Where no bound was asked for, the last known goes on, denials too.
		if a := h.get(node, "/api", authorization(bob)...); a.Status != 200 {
			t.Errorf("node %d: %+v", node, a)
		}
	}
	dropped()
	if err := denied(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.StartControl(ctx); err != nil {
		t.Fatal(err)
	}
}

// What is stored holds no secret in clear: neither the store's files nor the
// nodes' copies of what they last ran.
func TestThreatStoresHoldNoSecret(t *testing.T) {
	dir := t.TempDir()
	h := start(t, cluster.Config{Dir: dir, Nodes: 1})
	hmacKey := []byte("Zq3-an hmac secret of 32 bytes--")
	h.apply(fmt.Sprintf(`
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: shared}
spec: {issuer: 'https://shared.example', hmacSecret: %q}
---
apiVersion: portcullis.dev/v1
kind: Application
metadata: {name: marker-of-the-scan}
spec: {description: in clear}
`, base64.StdEncoding.EncodeToString(hmacKey)))
	ctx := t.Context()
	key, err := h.admin.CreateKey(ctx, &adminv1.CreateKeyRequest{Application: "marker-of-the-scan"})
	if err != nil {
		t.Fatal(err)
	}
	join, err := h.admin.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	operator, err := h.admin.CreateOperator(ctx, &adminv1.CreateOperatorRequest{Operator: &adminv1.Operator{Name: "eve", Role: adminv1.Role_ROLE_VIEWER}})
	if err != nil {
		t.Fatal(err)
	}
	token := h.mint("alice")
	secrets := map[string][]byte{
		"API key": []byte(key.Key), "join token": []byte(join.Token), "first operator": []byte(h.Credential()), "operator": []byte(operator.Credential), "minted token": []byte(token),
		"hmac secret": hmacKey, "hmac secret, base64": []byte(base64.StdEncoding.EncodeToString(hmacKey)),
	}
	// Without the prefix, too: the random part is what counts.
	for name, prefix := range map[string]string{"API key": "pc_", "join token": "pcj_", "first operator": "pco_", "operator": "pco_"} {
		rest, ok := strings.CutPrefix(string(secrets[name]), prefix)
		if !ok || len(rest) < 32 {
			t.Errorf("%s does not begin with %s", name, prefix)
		}
		secrets[name+", its beginning"] = []byte(rest[:24])
	}
	for _, room := range []string{"secrets", "issuer-keys"} {
		items, err := h.Store().Items(room).List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(items) == 0 {
			t.Errorf("the room %s is empty: nothing was scanned for", room)
		}
		for _, item := range items {
			if len(item.Value) < 16 {
				continue // a mark, not a key
			}
			name := room + "/" + item.Name
			secrets[name] = item.Value
			secrets[name+", base64"] = []byte(base64.StdEncoding.EncodeToString(item.Value))
			secrets[name+", hex"] = []byte(hex.EncodeToString(item.Value))
			if block, _ := pem.Decode(item.Value); block != nil {
				secrets[name+", DER"] = block.Bytes
			}
			// The key itself stands within its encoding.
			secrets[name+", its middle"] = item.Value[len(item.Value)/2-8 : len(item.Value)/2+8]
		}
	}
	h.until("the node's copy", func() error {
		if copies, err := filepath.Glob(filepath.Join(dir, "nodes/node-1/last-known-good/*.lkg")); err != nil || len(copies) == 0 {
			return fmt.Errorf("%d files, %v", len(copies), err)
		}
		return nil
	})
	for _, place := range []string{"etcd", "nodes/node-1/last-known-good"} {
		marked := false
		files := 0
		err := filepath.WalkDir(filepath.Join(dir, place), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || entry.Type()&fs.ModeSocket != 0 {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			marked = marked || bytes.Contains(data, []byte("marker-of-the-scan"))
			for name, secret := range secrets {
				if bytes.Contains(data, secret) {
					t.Errorf("%s is in clear in %s", name, path)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if files == 0 || place == "etcd" && !marked {
			t.Errorf("%s: %d files scanned, the name that must be there: %t", place, files, marked)
		}
	}
	// What holds keys by design is its owner's alone.
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && !entry.IsDir() && info.Mode().IsRegular() && strings.Contains(path, "key") && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// And what is read back through the API has none either.
	list, err := h.admin.List(ctx, &adminv1.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	credentials, err := h.admin.List(ctx, &adminv1.ListRequest{Kind: "Credential"})
	if err != nil {
		t.Fatal(err)
	}
	history, err := h.admin.History(ctx, &adminv1.HistoryRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []proto.Message{list, credentials, history} {
		data := marshal(t, m)
		for name, secret := range secrets {
			if bytes.Contains(data, secret) {
				t.Errorf("%s is in a %T", name, m)
			}
		}
	}
}
