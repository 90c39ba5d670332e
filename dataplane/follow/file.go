package follow

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// A state file is the full update that leads to the state, as it would come down
// the stream, with the control plane's signature, chunk by chunk:
//
//	magic   8 bytes
//	chunk   length of the sealed bytes, uint32 big endian; the sealed Update
//	...
//
// Each chunk is sealed for its version and its place, so that none can be left
// out, doubled, moved or taken from another file; the last one says that it is.
const (
	magic = "PCLKG\x00\x00\x01"
	// chunkBytes is about the size of a chunk: one is encoded and sealed without a
	// break, and should keep no request waiting.
	chunkBytes = 128 << 10
)

func chunkAAD(v config.Version, chunk uint32) []byte {
	b := append(make([]byte, 0, 64), "portcullis last-known-good state 1\x00"...)
	b = binary.BigEndian.AppendUint64(b, v.Epoch)
	b = binary.BigEndian.AppendUint64(b, uint64(v.Revision))
	return binary.BigEndian.AppendUint32(b, chunk)
}

// stateWriter writes a state file.
type stateWriter struct {
	w       *bufio.Writer
	sealer  Sealer
	version config.Version
	current *controlv1.Update
	size    int
	next    uint32
	err     error
}

func newStateWriter(w io.Writer, sealer Sealer, v config.Version) *stateWriter {
	s := &stateWriter{w: bufio.NewWriterSize(w, 64<<10), sealer: sealer, version: v}
	_, s.err = s.w.WriteString(magic)
	s.open()
	return s
}

func (s *stateWriter) open() {
	s.current = &controlv1.Update{Version: s.version.Proto(), Chunk: s.next}
	s.size = 0
}

func (s *stateWriter) room(n int) {
	if s.size > 0 && s.size+n > chunkBytes {
		s.flush()
	}
	s.size += n
}

func (s *stateWriter) resource(r *configv1.Resource) {
	s.room(proto.Size(r) + 6)
	s.current.Upserts = append(s.current.Upserts, r)
}

func (s *stateWriter) revocation(r *controlv1.Revocation) {
	s.room(proto.Size(r) + 4)
	s.current.Revocations = append(s.current.Revocations, r)
}

func (s *stateWriter) credentials(r *controlv1.CredentialRecords) {
	if s.current.Credentials != nil {
		s.flush()
	}
	s.room(proto.Size(r) + 6)
	s.current.Credentials = r
}

// finish is the last content.
func (s *stateWriter) finish(digest [32]byte, signature []byte, revocations int64) {
	s.current.Last = true
	s.current.Digest, s.current.Signature, s.current.RevocationsRevision = digest[:], signature, revocations
	s.flush()
}

func (s *stateWriter) flush() {
	if s.err != nil {
		return
	}
	plain, err := proto.Marshal(s.current)
	if err == nil {
		plain, err = s.sealer.Seal(plain, chunkAAD(s.version, s.next))
	}
	if err == nil {
		_, err = s.w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(plain))))
	}
	if err == nil {
		_, err = s.w.Write(plain)
	}
	s.err = err
	s.next++
	s.open()
}

func (s *stateWriter) close() error {
	if s.err != nil {
		return s.err
	}
	return s.w.Flush()
}

// stored is a state as read from disk. Its signature has not been checked.
type stored struct {
	state       assembly
	revocations []*controlv1.Revocation
	// complete is the revision up to which the revocations are all there.
	complete int64
}

// readState reads a state file whole; errors are ErrTampered.
func readState(r io.Reader, sealer Sealer, v config.Version, maxBytes int) (*stored, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(in, head); err != nil || string(head) != magic {
		return nil, fmt.Errorf("%w: not a state file", ErrTampered)
	}
	var st stored
	for done := false; !done; {
		plain, err := readChunk(in, sealer, chunkAAD(v, st.state.next), maxBytes)
		if err != nil {
			return nil, err
		}
		u := &controlv1.Update{}
		if err := proto.Unmarshal(plain, u); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrTampered, err)
		}
		if done, err = st.state.add(u, maxBytes); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrTampered, err)
		}
		st.revocations = append(st.revocations, u.GetRevocations()...)
		st.complete = u.GetRevocationsRevision()
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: bytes after the end", ErrTampered)
	}
	if st.state.version != v || !st.state.full() {
		return nil, fmt.Errorf("%w: holds %v..%v", ErrTampered, st.state.from, st.state.version)
	}
	return &st, nil
}

func readChunk(in *bufio.Reader, sealer Sealer, aad []byte, maxBytes int) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(in, n[:]); err != nil {
		return nil, fmt.Errorf("%w: cut short", ErrTampered)
	}
	length := int64(binary.BigEndian.Uint32(n[:]))
	if length > int64(min(maxBytes, maxMessage)) {
		return nil, fmt.Errorf("%w: a chunk of %d bytes", ErrTampered, length)
	}
	// Read as it comes, so that a forged length costs no more than the file holds.
	sealed, err := io.ReadAll(io.LimitReader(in, length))
	if err != nil || int64(len(sealed)) != length {
		return nil, fmt.Errorf("%w: cut short", ErrTampered)
	}
	plain, err := sealer.Open(sealed, aad)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTampered, err)
	}
	return plain, nil
}
