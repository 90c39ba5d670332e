package stream

import (
	"fmt"
	"iter"

	"google.golang.org/protobuf/proto"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// frame is an encoded FollowResponse that any number of streams may send at
// once: its only content is the wire form, kept as unknown fields, which every
// codec passes through as it is. So a version is encoded once, with no need of a
// codec of our own or of grpc.PreparedMsg, which ties the bytes to one stream's
// compressor.
type frame struct {
	message *controlv1.FollowResponse
	size    int
}

func freeze(m *controlv1.FollowResponse) (frame, error) {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return frame{}, fmt.Errorf("encode for nodes: %w", err)
	}
	out := &controlv1.FollowResponse{}
	out.ProtoReflect().SetUnknown(raw)
	return frame{out, len(raw)}, nil
}

// transfer is one update, encoded.
type transfer struct {
	version config.Version
	frames  []frame
	bytes   int
}

// chunker cuts an update into chunks of about limit bytes; one resource larger
// than that travels alone. Resources of several kinds share a chunk.
type chunker struct {
	limit         int
	version, from *controlv1.Version
	// lane makes every chunk an update of the deny lane that stands alone: it claims
	// nothing until the last, which moves the lane to version.
	lane    bool
	out     transfer
	current *controlv1.Update
	size    int
	err     error
}

func newChunker(version, from config.Version, limit int) *chunker {
	c := &chunker{limit: limit, version: version.Proto(), out: transfer{version: version}}
	if !from.IsZero() {
		c.from = from.Proto()
	}
	c.open()
	return c
}

func (c *chunker) open() {
	c.size = 64
	if c.lane {
		c.current = &controlv1.Update{Version: c.from, From: c.from, Last: true}
		return
	}
	c.current = &controlv1.Update{Version: c.version, From: c.from, Chunk: uint32(len(c.out.frames))}
}

// room makes room for n more bytes.
func (c *chunker) room(n int) {
	if c.size+n > c.limit && c.size > 64 {
		c.flush()
		c.open()
	}
	c.size += n
}

func (c *chunker) flush() {
	if c.err != nil {
		return
	}
	f, err := freeze(&controlv1.FollowResponse{Kind: &controlv1.FollowResponse_Update{Update: c.current}})
	if err != nil {
		c.err = err
		return
	}
	c.out.frames = append(c.out.frames, f)
	c.out.bytes += f.size
}

func (c *chunker) revocations(entries iter.Seq[*controlv1.Revocation]) {
	for r := range entries {
		c.room(proto.Size(r) + 4)
		c.current.Revocations = append(c.current.Revocations, r)
	}
}

func (c *chunker) resources(resources iter.Seq[*configv1.Resource]) {
	for r := range resources {
		c.room(proto.Size(r) + 6)
		c.current.Upserts = append(c.current.Upserts, r)
	}
}

func (c *chunker) deletes(keys []config.Key) {
	for _, k := range keys {
		p := k.Proto()
		c.room(proto.Size(p) + 4)
		c.current.Deletes = append(c.current.Deletes, p)
	}
}

// credentials adds packed records; a chunk holds at most one pack.
func (c *chunker) credentials(packs iter.Seq[*controlv1.CredentialRecords]) {
	for p := range packs {
		if c.current.Credentials != nil {
			c.flush()
			c.open()
		}
		c.room(proto.Size(p) + 6)
		c.current.Credentials = p
	}
}

// packed cuts credentials into packs that fit a chunk.
func packed(credentials []credential.Credential, deletes [][32]byte, limit int) iter.Seq[*controlv1.CredentialRecords] {
	per := max(1, limit/(2*credential.Size))
	return func(yield func(*controlv1.CredentialRecords) bool) {
		for len(credentials) > 0 || len(deletes) > 0 {
			n, d := min(per, len(credentials)), min(per, len(deletes))
			if !yield(credential.Pack(credentials[:n], deletes[:d])) {
				return
			}
			credentials, deletes = credentials[n:], deletes[d:]
		}
	}
}

// newLaneChunker cuts what moves only the deny lane: updates without digest and
// signature, which leave config and credentials as they are.
func newLaneChunker(version, from config.Version, limit int) *chunker {
	c := newChunker(version, from, limit)
	c.lane = true
	c.open()
	return c
}

// finish closes the update with what stands on its last chunk.
func (c *chunker) finish(head Head, signature []byte) (*transfer, error) {
	c.current.Last = true
	c.current.RevocationsRevision = head.Revocations
	if c.lane {
		c.current.Version = c.version
	} else {
		c.current.Digest = head.Digest[:]
		c.current.Signature = signature
	}
	c.flush()
	if c.err != nil {
		return nil, c.err
	}
	return &c.out, nil
}
