package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// order is one certificate's way through RFC 8555, section 7.1, by one goroutine.
type order struct {
	*Keeper
	source Source

	client  *acme.Client
	account acme.Account
	// askIn is how long the authority is left alone about the new certificate.
	askIn time.Duration
}

// run orders and returns what is to be written. errMoved when the Certificate does
// not ask for it any more.
func (o *order) run(ctx context.Context) (*configv1.IssuedCertificate, error) {
	spec := o.source.Certificate.GetAcme()
	if !spec.TermsAgreed {
		return nil, errors.New("termsAgreed is not set, so the authority is not asked")
	}
	client, closeIdle, err := o.connect(spec)
	if err != nil {
		return nil, err
	}
	defer closeIdle()
	o.client = client
	if o.account, err = o.enroll(ctx, spec); err != nil {
		return nil, fmt.Errorf("account: %w", err)
	}
	placed, err := o.place(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	if err := o.authorize(ctx, placed); err != nil {
		return nil, err
	}
	return o.finalize(ctx, placed, spec)
}

// place makes the order. Where the authority plans renewals it is told which
// certificate this one replaces (RFC 9773, 5), which spares its rate limits.
func (o *order) place(ctx context.Context, spec *configv1.ACME) (acme.Order, error) {
	wanted := acme.Order{}
	for _, host := range spec.Hostnames {
		wanted.Identifiers = append(wanted.Identifiers, acme.Identifier{Type: "dns", Value: host})
	}
	directory, err := o.client.GetDirectory(ctx)
	if err != nil {
		return acme.Order{}, err
	}
	if leaf := leafOf(o.source.Issued.GetCertificate()); leaf != nil && directory.RenewalInfo != "" && proto.Equal(o.source.Issued.Ordered, spec) {
		replacing := wanted
		if replacing.Replaces, err = acme.ARIUniqueIdentifier(leaf); err == nil {
			if placed, err := o.client.NewOrder(ctx, o.account, replacing); err == nil || limited(err) {
				return placed, err
			}
			// It may be replaced already, or of another account: that is no reason not to
			// order.
		}
	}
	return o.client.NewOrder(ctx, o.account, wanted)
}

// authorize proves the control of every host name. All challenges are answered in
// one revision, which every node runs before the authority is told to look.
func (o *order) authorize(ctx context.Context, placed acme.Order) error {
	type proof struct {
		authorization acme.Authorization
		challenge     acme.Challenge
	}
	var proofs []proof
	issued := &configv1.IssuedCertificate{}
	if o.source.Issued != nil {
		issued = proto.CloneOf(o.source.Issued)
	}
	issued.Challenges = nil
	for _, url := range placed.Authorizations {
		authorization, err := o.client.GetAuthorization(ctx, o.account, url)
		if err != nil {
			return fmt.Errorf("authorization: %w", err)
		}
		host := authorization.IdentifierValue()
		switch authorization.Status {
		case acme.StatusValid:
			continue
		case acme.StatusPending:
		default:
			return fmt.Errorf("%s: the authorization is %s from the start", host, authorization.Status)
		}
		i := slices.IndexFunc(authorization.Challenges, func(c acme.Challenge) bool { return c.Type == acme.ChallengeTypeHTTP01 })
		if i < 0 {
			return fmt.Errorf("%s: the authority offers no http-01 challenge", host)
		}
		challenge := authorization.Challenges[i]
		if !wellFormed(challenge.Token) {
			return fmt.Errorf("%s: the challenge's token is not base64url of 128 bits or more (RFC 8555, 8.1)", host)
		}
		proofs = append(proofs, proof{authorization, challenge})
		issued.Challenges = append(issued.Challenges, &configv1.ACMEChallenge{Token: challenge.Token, KeyAuthorization: challenge.KeyAuthorization})
	}
	if len(proofs) == 0 {
		return nil
	}
	version, err := o.write(ctx, o.source, issued, "acme: challenges")
	if err != nil {
		return err
	}
	if err := o.everywhere(ctx, version); err != nil {
		return err
	}
	for _, p := range proofs {
		if _, err := o.client.InitiateChallenge(ctx, o.account, p.challenge); err != nil {
			return fmt.Errorf("%s: %w", p.authorization.IdentifierValue(), err)
		}
	}
	for _, p := range proofs {
		if _, err := o.client.PollAuthorization(ctx, o.account, p.authorization); err != nil {
			return fmt.Errorf("%s: %w", p.authorization.IdentifierValue(), err)
		}
	}
	return nil
}

// everywhere returns once every connected node runs the version. One that does not
// in time ends the order: the authority may ask it, and a validation that fails
// counts against limits, while an order that waits does not.
func (o *order) everywhere(ctx context.Context, version config.Version) error {
	bounded, cancel := context.WithTimeout(ctx, o.cfg.Converge)
	defer cancel()
	convergence := o.cfg.Await(bounded, version)
	if err := ctx.Err(); err != nil {
		return err
	}
	if convergence.Programmed == 0 && len(convergence.Behind) == 0 {
		return errors.New("no node is connected that could answer the challenges")
	}
	if convergence.Converged {
		return nil
	}
	names := make([]string, 0, len(convergence.Behind))
	for _, node := range convergence.Behind {
		names = append(names, node.Name)
	}
	if more := len(names) - 5; more > 0 {
		names = append(names[:5:5], fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("the challenges are not on every node: %d of %d run revision %s, behind: %s",
		convergence.Programmed, convergence.Total, version, strings.Join(names, ", "))
}

// finalize makes the certificate's key, a new one each time, and fetches the
// certificate.
func (o *order) finalize(ctx context.Context, placed acme.Order, spec *configv1.ACME) (*configv1.IssuedCertificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: spec.Hostnames}, key)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	done, err := o.client.FinalizeOrder(ctx, o.account, placed, csr)
	if err != nil {
		return nil, fmt.Errorf("finalizing the order: %w", err)
	}
	chains, err := o.client.GetCertificateChain(ctx, o.account, done.Certificate)
	if err != nil {
		return nil, fmt.Errorf("fetching the certificate: %w", err)
	}
	// The first chain is the one that the authority prefers.
	chain, leaf, err := vet(chains[0].ChainPEM, key, spec.Hostnames, time.Now())
	if err != nil {
		return nil, fmt.Errorf("the certificate that was issued cannot be used: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	issued := &configv1.IssuedCertificate{
		Certificate: chain,
		PrivateKey:  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		IssuedAt:    timestamppb.Now(),
		Ordered:     proto.CloneOf(spec),
	}
	schedule(issued, leaf, chains[0].RenewalInfo)
	o.askIn = askIn(chains[0].RenewalInfo, nil, issued.Suggested != nil, time.Now())
	return issued, nil
}

// maxChain bounds a chain, in bytes of PEM.
const maxChain = 64 << 10

// vet returns the chain, and nothing else that the answer may hold, after making
// sure that it is for the key and for every host name, now.
func vet(answer []byte, key *ecdsa.PrivateKey, hostnames []string, now time.Time) (string, *x509.Certificate, error) {
	if len(answer) > maxChain {
		return "", nil, fmt.Errorf("its chain is larger than %d KiB", maxChain>>10)
	}
	var chain strings.Builder
	var leaf *x509.Certificate
	for block, rest := pem.Decode(answer); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", nil, err
		}
		if leaf == nil {
			leaf = certificate
		}
		chain.Write(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
	}
	switch {
	case leaf == nil:
		return "", nil, errors.New("its chain is empty")
	case !key.PublicKey.Equal(leaf.PublicKey):
		return "", nil, errors.New("it is for another key")
	case !leaf.NotAfter.After(now):
		return "", nil, fmt.Errorf("it expired at %s", leaf.NotAfter.Format(time.RFC3339))
	}
	for _, host := range hostnames {
		if err := leaf.VerifyHostname(host); err != nil {
			return "", nil, err
		}
	}
	return chain.String(), leaf, nil
}

// wellFormed says whether a token is one that a node may answer to (RFC 8555, 8.1).
func wellFormed(token string) bool {
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	}
	return len(token) >= 22 && len(token) <= 256 && !strings.ContainsFunc(token, bad)
}

// leafOf returns a PEM chain's first certificate; nil when there is none.
func leafOf(chain string) *x509.Certificate {
	block, _ := pem.Decode([]byte(chain))
	if block == nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return leaf
}

// Expiry returns when a PEM chain's first certificate expires; zero when there is
// none.
func Expiry(chain string) time.Time {
	if leaf := leafOf(chain); leaf != nil {
		return leaf.NotAfter
	}
	return time.Time{}
}
