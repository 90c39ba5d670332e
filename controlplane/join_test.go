package controlplane

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/revocation"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func revoked(subject string) *controlv1.Revocation {
	kind := controlv1.RevocationKind_REVOCATION_KIND_SUBJECT
	key := revocation.KeyOf(kind, "", subject)
	return &controlv1.Revocation{Kind: kind, Key: key[:], RevokedBefore: timestamppb.Now(), ExpiresAt: timestamppb.New(time.Now().Add(time.Hour))}
}

// Of many that send one join token at once exactly one gets in, on two replicas.
func TestJoinTokenWorksOnce(t *testing.T) {
	t.Parallel()
	st := memoryStore(t)
	a := newReplica(t, st, "cp-a", "")
	b := newReplica(t, st, "cp-b", a.operator)
	for round := range 5 {
		secret, err := a.JoinToken(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		var won, refused atomic.Int32
		var joining sync.WaitGroup
		for i := range 20 {
			address := []string{a.control, b.control}[i%2]
			joining.Go(func() {
				switch _, err := join(t.Context(), address, secret, fmt.Sprintf("n-%d-%d", round, i)); {
				case err == nil:
					won.Add(1)
				case status.Code(err) == codes.PermissionDenied:
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		joining.Wait()
		if won.Load() != 1 || refused.Load() != 19 {
			t.Fatalf("%d got in, %d were refused", won.Load(), refused.Load())
		}
	}
}

func TestJoinRefusals(t *testing.T) {
	t.Parallel()
	r, foreign := newReplica(t, memoryStore(t), "cp-1", ""), newReplica(t, memoryStore(t), "cp-1", "")
	token := func(from *replica) string {
		secret, err := from.JoinToken(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return secret
	}
	// Another cluster's token: the node sees that this is not its control plane, and
	// does not send it.
	if _, err := join(t.Context(), r.control, token(foreign), "n1"); status.Code(err) != codes.Unavailable {
		t.Errorf("another cluster's token over the wire: %v", err)
	}
	// Nor is it good for anything when it is sent.
	request := func(role identity.Role, name, secret string) error {
		_, csr, err := identity.NewRequest(identity.Identity{Role: role, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.members.Join(t.Context(), &controlv1.JoinRequest{Token: secret, Csr: csr})
		return err
	}
	if err := request(identity.Dataplane, "n1", token(foreign)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another cluster's token: %v", err)
	}
	mine := token(r)
	if err := request(identity.Controlplane, "cp-2", mine); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node as control plane: %v", err)
	}
	for name, secret := range map[string]string{"empty": "", "cut short": mine[:len(mine)-1], "an operator's": r.operator, "changed": mine[:len(mine)-2] + "00"} {
		if err := request(identity.Dataplane, "n1", secret); status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.members.Join(t.Context(), &controlv1.JoinRequest{Token: mine, Csr: []byte("csr")}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no CSR: %v", err)
	}
	// None of that has used the token up.
	if err := request(identity.Dataplane, "n1", mine); err != nil {
		t.Errorf("the token after all that: %v", err)
	}
	// A name that is taken is refused, and uses no token up; who has no token is not
	// told which names are taken.
	another := token(r)
	if err := request(identity.Dataplane, "n1", another); status.Code(err) != codes.AlreadyExists {
		t.Errorf("a taken name: %v", err)
	}
	if err := request(identity.Dataplane, "n1", mine); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a taken name with a used token: %v", err)
	}
	if err := request(identity.Dataplane, "n2", another); err != nil {
		t.Errorf("the token after a taken name: %v", err)
	}
}

func TestJoinTokenExpires(t *testing.T) {
	t.Parallel()
	ca, err := identity.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		st := store.NewMemory()
		defer func() { _ = st.Close() }()
		m := &members{store: st, ca: ca}
		early, err1 := m.token(t.Context(), time.Minute)
		late, err2 := m.token(t.Context(), time.Minute)
		_, csr, err3 := identity.NewRequest(identity.Identity{Role: identity.Dataplane, Name: "n1"})
		if err1 != nil || err2 != nil || err3 != nil {
			t.Fatal(err1, err2, err3)
		}
		time.Sleep(59 * time.Second)
		// The bubble's clock is long before the CA's: what is asked is whether the
		// token counts, not whether a certificate comes of it.
		if _, err := m.Join(t.Context(), &controlv1.JoinRequest{Token: early, Csr: csr}); status.Code(err) == codes.PermissionDenied {
			t.Errorf("a second before its end: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := st.Items(roomNodes).Delete(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Join(t.Context(), &controlv1.JoinRequest{Token: late, Csr: csr}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("after its end: %v", err)
		}
	})
}

// A certificate says who a node is, and nothing else does.
func TestNodesAreWhoTheirCertificatesSay(t *testing.T) {
	t.Parallel()
	r, foreign := newReplica(t, memoryStore(t), "cp-1", ""), newReplica(t, memoryStore(t), "cp-1", "")
	n1, stranger := newNode(t, r, "n1"), newNode(t, foreign, "n1")
	newNode(t, r, "n2")
	// renew returns whom the certificate that it got names.
	renew := func(live *identity.Live, role identity.Role, name string) (identity.Identity, error) {
		key, csr, err := identity.NewRequest(identity.Identity{Role: role, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := controlv1.NewRenewServiceClient(dial(t, r.control, live)).Renew(t.Context(), &controlv1.RenewRequest{Csr: csr})
		if err != nil {
			return identity.Identity{}, err
		}
		got, err := identity.NewLive(identity.State{Key: key, Issued: identity.Issued{Certificates: resp.Certificates, Authorities: resp.Authorities}})
		if err != nil {
			t.Fatal(err)
		}
		return got.Identity(), nil
	}
	// Whatever the request names, the certificate is for who asks.
	for _, ask := range []identity.Identity{{Role: identity.Dataplane, Name: "n1"}, {Role: identity.Dataplane, Name: "n2"}, {Role: identity.Controlplane, Name: "cp-1"}} {
		if got, err := renew(n1.live, ask.Role, ask.Name); err != nil || got != n1.live.Identity() {
			t.Errorf("asked for %v: got %v, %v", ask, got, err)
		}
	}
	if resp, err := renew(stranger.live, identity.Dataplane, "n1"); status.Code(err) != codes.Unavailable {
		t.Errorf("with another cluster's certificate: %v, %v", resp, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	watch, err := controlv1.NewPeerServiceClient(dial(t, r.control, n1.live)).WatchNodes(ctx, &controlv1.WatchNodesRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node as a peer: %v", err)
	}
	// The replica's own certificate is no node's.
	follow, err := controlv1.NewControlServiceClient(dial(t, r.control, r.live)).Follow(ctx)
	if err == nil {
		_, err = follow.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a replica as a node: %v", err)
	}
	// Who was taken out is out: no renewal, no stream.
	if err := r.members.remove(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	if _, err := renew(n1.live, identity.Dataplane, "n1"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("renewed after removal: %v", err)
	}
	follow, err = controlv1.NewControlServiceClient(dial(t, r.control, n1.live)).Follow(ctx)
	if err == nil {
		_, err = follow.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("followed after removal: %v", err)
	}
}
