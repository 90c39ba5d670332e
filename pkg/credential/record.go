package credential

import (
	"encoding/binary"
	"fmt"
	"iter"

	"portcullis.dev/portcullis/pkg/revocation"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Size of a packed record in bytes:
//
//	 0  SHA-256 of the key       [32]byte
//	32  id                       [16]byte
//	48  workspace                uint32
//	52  application              uint32
//	56  scopes                   uint32, 0 for all of the application's
//	60  expires                  uint32, Unix seconds, 0 for never
//
// Numbers are little endian. Workspace, application and scopes are indexes into
// the table of strings, counted from 1.
const Size = 64

const kind = controlv1.RevocationKind_REVOCATION_KIND_CREDENTIAL

// Pack makes records that add credentials and delete keys.
func Pack(credentials []Credential, deletes [][32]byte) *controlv1.CredentialRecords {
	p := newPacker()
	for _, c := range credentials {
		p.add(c)
	}
	for _, sha := range deletes {
		p.out.Deletes = append(p.out.Deletes, sha[:]...)
	}
	return p.out
}

// packer builds one message.
type packer struct {
	out   *controlv1.CredentialRecords
	index map[string]uint32
	text  int // bytes that the strings take in the message
}

func newPacker() *packer {
	return &packer{out: &controlv1.CredentialRecords{}, index: map[string]uint32{}}
}

func (p *packer) ref(s string) uint32 {
	if s == "" {
		return 0
	}
	i, ok := p.index[s]
	if !ok {
		p.out.Strings = append(p.out.Strings, s)
		i = uint32(len(p.out.Strings))
		p.index[s] = i
		p.text += len(s) + 4 // tag and length
	}
	return i
}

func (p *packer) add(c Credential) {
	b := append(p.out.Upserts, c.SHA256[:]...)
	b = append(b, c.ID[:]...)
	b = binary.LittleEndian.AppendUint32(b, p.ref(c.Workspace))
	b = binary.LittleEndian.AppendUint32(b, p.ref(c.Application))
	b = binary.LittleEndian.AppendUint32(b, p.ref(c.Scopes))
	p.out.Upserts = binary.LittleEndian.AppendUint32(b, uint32(c.Expires))
}

func (p *packer) size() int { return len(p.out.Upserts) + p.text + 16 }

// cost bounds what c can add to the message.
func (p *packer) cost(c Credential) int {
	return Size + len(c.Workspace) + len(c.Application) + len(c.Scopes) + 12
}

// records is a message that has been checked whole.
type records struct{ r *controlv1.CredentialRecords }

func checkRecords(r *controlv1.CredentialRecords) (records, error) {
	up, del, strs := r.GetUpserts(), r.GetDeletes(), r.GetStrings()
	if len(up)%Size != 0 {
		return records{}, fmt.Errorf("%w: records of %d bytes are not a multiple of %d", ErrInvalid, len(up), Size)
	}
	if len(del)%32 != 0 {
		return records{}, fmt.Errorf("%w: deletes of %d bytes are not a multiple of 32", ErrInvalid, len(del))
	}
	for i, s := range strs {
		if s == "" {
			return records{}, fmt.Errorf("%w: string %d is empty", ErrInvalid, i)
		}
	}
	scoped := make([]bool, len(strs)) // checked as scopes already
	for i := range len(up) / Size {
		b := up[i*Size:][:Size]
		ws, app, scopes := ref(b, 48), ref(b, 52), ref(b, 56)
		if n := uint32(len(strs)); ws == 0 || app == 0 || ws > n || app > n || scopes > n {
			return records{}, fmt.Errorf("%w: record %d refers to strings %d, %d and %d of %d", ErrInvalid, i, ws, app, scopes, n)
		}
		if k := revocation.Key(b[32:48]).Kind(); k != kind {
			return records{}, fmt.Errorf("%w: record %d has an id of %v", ErrInvalid, i, k)
		}
		if scopes > 0 && !scoped[scopes-1] {
			if err := checkScopes(strs[scopes-1]); err != nil {
				return records{}, fmt.Errorf("%w: record %d: %w", ErrInvalid, i, err)
			}
			scoped[scopes-1] = true
		}
	}
	return records{r}, nil
}

func ref(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

func (v records) upserts() iter.Seq[Credential] {
	return func(yield func(Credential) bool) {
		up, strs := v.r.GetUpserts(), v.r.GetStrings()
		for ; len(up) > 0; up = up[Size:] {
			c := Credential{
				SHA256:      [32]byte(up[:32]),
				ID:          [16]byte(up[32:48]),
				Workspace:   strs[ref(up, 48)-1],
				Application: strs[ref(up, 52)-1],
				Expires:     int64(ref(up, 60)),
			}
			if i := ref(up, 56); i > 0 {
				c.Scopes = strs[i-1]
			}
			if !yield(c) {
				return
			}
		}
	}
}

func (v records) deletes() iter.Seq[[32]byte] {
	return func(yield func([32]byte) bool) {
		for del := v.r.GetDeletes(); len(del) > 0; del = del[32:] {
			if !yield([32]byte(del[:32])) {
				return
			}
		}
	}
}

// Unpack checks a message whole and returns what it adds and deletes. A receiver
// applies the deletes first. Errors are ErrInvalid.
func Unpack(r *controlv1.CredentialRecords) (upserts iter.Seq[Credential], deletes iter.Seq[[32]byte], err error) {
	v, err := checkRecords(r)
	if err != nil {
		return nil, nil, err
	}
	return v.upserts(), v.deletes(), nil
}
