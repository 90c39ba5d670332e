package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
)

const (
	joinPrefix     = "pcj_"
	operatorPrefix = "pco_"
	secretSize     = 32
	joinFormat     = 1
	maxPins        = 8
)

// ErrJoinToken says that a string is no join token.
var ErrJoinToken = errors.New("join token is cut short or mistyped: want " + joinPrefix + "…")

// ErrOperatorCredential says that a string is no operator credential.
var ErrOperatorCredential = errors.New("operator credential is cut short or mistyped: want " + operatorPrefix + "…")

// JoinToken lets one machine into the cluster once: 256 random bits, and the pins
// of the cluster's authorities, so that the machine knows the cluster before it
// sends the token. What it may join as and until when the control plane keeps
// with its ID. It prints as its ID.
type JoinToken struct {
	secret [secretSize]byte
	pins   [][sha256.Size]byte
}

// NewJoinToken draws a token with the pins of the CA, at most 8.
func NewJoinToken(pins [][sha256.Size]byte) (JoinToken, error) {
	if len(pins) == 0 || len(pins) > maxPins {
		return JoinToken{}, fmt.Errorf("a join token carries 1 to %d pins, not %d", maxPins, len(pins))
	}
	t := JoinToken{pins: pins}
	rand.Read(t.secret[:])
	return t, nil
}

// Reveal returns the token's text. It is shown once.
func (t JoinToken) Reveal() string {
	b := append([]byte{joinFormat}, t.secret[:]...)
	for _, p := range t.pins {
		b = append(b, p[:]...)
	}
	return encodeText(joinPrefix, b)
}

// ID names the token where it is kept: SHA-256 of its secret in hex. It gives
// nothing away, and looking it up takes no secret-dependent time.
func (t JoinToken) ID() string {
	sum := sha256.Sum256(append([]byte("portcullis join token\x00"), t.secret[:]...))
	return hex.EncodeToString(sum[:])
}

// Pins returns the pins of the authorities that the token's cluster had.
func (t JoinToken) Pins() [][sha256.Size]byte { return t.pins }

// Format prints the first digits of the ID under every verb.
func (t JoinToken) Format(f fmt.State, _ rune) { fmt.Fprint(f, "join token "+t.ID()[:8]) }

// LogValue prints the first digits of the ID.
func (t JoinToken) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(t)) }

// ParseJoinToken reads a token's text. The error, ErrJoinToken, does not hold it.
func ParseJoinToken(s string) (JoinToken, error) {
	b, err := decodeText(joinPrefix, s, 1+secretSize+maxPins*sha256.Size)
	if err != nil || len(b) < 1+secretSize+sha256.Size || b[0] != joinFormat || (len(b)-1-secretSize)%sha256.Size != 0 {
		return JoinToken{}, ErrJoinToken
	}
	t := JoinToken{secret: [secretSize]byte(b[1:])}
	for rest := b[1+secretSize:]; len(rest) > 0; rest = rest[sha256.Size:] {
		t.pins = append(t.pins, [sha256.Size]byte(rest))
	}
	return t, nil
}

// NewOperatorCredential draws a credential of 256 random bits. The digest is what
// is kept; the credential is shown once.
func NewOperatorCredential() (credential string, digest [sha256.Size]byte) {
	var secret [secretSize]byte
	rand.Read(secret[:])
	return encodeText(operatorPrefix, secret[:]), operatorDigest(secret[:])
}

// ParseOperatorCredential checks prefix and checksum and returns the digest, by
// which the operator is looked up. The error is ErrOperatorCredential.
func ParseOperatorCredential(s string) (digest [sha256.Size]byte, err error) {
	b, err := decodeText(operatorPrefix, s, secretSize)
	if err != nil || len(b) != secretSize {
		return digest, ErrOperatorCredential
	}
	return operatorDigest(b), nil
}

// SameDigest compares a presented digest with a kept one in constant time.
func SameDigest(presented [sha256.Size]byte, kept []byte) bool {
	return subtle.ConstantTimeCompare(presented[:], kept) == 1
}

// The secret is uniformly random, so a fast hash keeps it: there is nothing to
// guess.
func operatorDigest(secret []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte("portcullis operator\x00"), secret...))
}
