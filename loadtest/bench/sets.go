package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	million = 1_000_000
	// keyBatch is how many keys travel in one message.
	keyBatch  = 10_000
	setRounds = 3
)

func hashOf(i int) [32]byte { return sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(i))) }

func keyName(i int) string { return fmt.Sprintf("key-%07d", i) }

// packedKeys is a million credentials of 1,000 applications, as they travel.
func packedKeys() []*controlv1.CredentialRecords {
	var messages []*controlv1.CredentialRecords
	for from := 0; from < million; from += keyBatch {
		batch := make([]credential.Credential, keyBatch)
		for j := range batch {
			n := from + j
			batch[j] = credential.Credential{
				SHA256: hashOf(n), ID: revocation.CredentialKey(hashOf(n)), Workspace: "shop",
				Application: fmt.Sprint("app-", n%1000), Expires: 4_000_000_000,
			}
		}
		messages = append(messages, credential.Pack(batch, nil))
	}
	return messages
}

// measureKeys gives a million API keys to a node: into its set from the records
// in which they travel, and as a node's first state from a control plane.
func measureKeys(ctx context.Context) ([]reading, error) {
	messages := packedKeys()
	var spent []time.Duration
	var size float64
	for range setRounds {
		var each time.Duration
		set, heap, err := heapOf(func() (*credential.Set, error) {
			began := time.Now()
			set, err := loadKeys(messages)
			each = time.Since(began)
			return set, err
		})
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, err
		}
		for _, n := range []int{0, million / 2, million - 1} {
			sha := hashOf(n)
			if _, ok := set.Lookup(&sha); !ok {
				return nil, fmt.Errorf("key %d is not there", n)
			}
		}
		spent, size = append(spent, each), max(size, heap)
	}
	streamed, err := streamKeys(ctx, messages)
	return []reading{
		{size, fmt.Sprintf("live heap after collection, largest of %d", setRounds)},
		took(streamed, "encoded, sent, checked, indexed, digests compared; %s of it checking and indexing, median of %d",
			printSeconds(median(spent).Seconds()), setRounds),
	}, err
}

// streamKeys takes the time from a node's start to its report that it runs a
// first state with all the keys in it.
func streamKeys(ctx context.Context, messages []*controlv1.CredentialRecords) (took time.Duration, err error) {
	set, err := loadKeys(messages)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	f, err := newFollowing(ctx, manyRoutes(1), set)
	if err != nil {
		return 0, err
	}
	took = time.Since(began)
	if n := f.rig.deps.Credentials.Len(); n != million {
		err = fmt.Errorf("the node has %d keys", n)
	}
	return took, errors.Join(err, f.close())
}

func loadKeys(messages []*controlv1.CredentialRecords) (*credential.Set, error) {
	set := credential.NewSet()
	for _, m := range messages {
		if err := set.Apply(m); err != nil {
			return nil, err
		}
	}
	if set.Len() != million {
		return nil, fmt.Errorf("%d keys in the set", set.Len())
	}
	return set, nil
}

// measureRevocations holds a million revoked tokens and asks for others.
func measureRevocations(ctx context.Context) ([]reading, error) {
	set, size, err := heapOf(func() (*revocation.Set, error) {
		set := revocation.NewSet()
		for i := range million {
			key := revocation.KeyOf(controlv1.RevocationKind_REVOCATION_KIND_JTI, "", keyName(i))
			set.Add(revocation.Entry{Key: key, Before: revocation.Always, Expires: int64(4_000_000_000 + i%3600)})
		}
		if set.Len() != million {
			return nil, fmt.Errorf("%d revocations in the set", set.Len())
		}
		return set, nil
	})
	if err != nil {
		return nil, err
	}
	if _, denied := set.Revoked(&revocation.Subject{JTI: keyName(7)}); !denied {
		return nil, errors.New("a revoked token is not denied")
	}
	// As many as the processor's caches hold: a token that is asked for has just
	// been read.
	others := make([]string, 1<<12)
	for i := range others {
		others[i] = fmt.Sprintf("0b6ff7b0-93b6-4b7c-8a7e-%012d", i)
	}
	hits := 0
	var rounds []time.Duration
	subject := &revocation.Subject{Session: "session", Subject: "alice", Client: "app", Issuer: issuerURL, IssuedAt: time.Now().Unix()}
	for range 5 {
		each, err := timePerCall(500_000, func(i int) {
			subject.JTI = others[i*7919%len(others)]
			if _, denied := set.Revoked(subject); denied {
				hits++
			}
		})
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, err
		}
		rounds = append(rounds, each)
	}
	if hits > 0 {
		return nil, fmt.Errorf("%d tokens that nobody revoked are denied", hits)
	}
	return []reading{
		{size, "live heap after collection"},
		took(median(rounds), "a whole token, hashing of its jti included; processor time, median of 5 rounds"),
	}, nil
}
