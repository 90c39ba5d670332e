package http2

import (
	"fmt"
	"strconv"

	"golang.org/x/net/http2/hpack"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// maxAnswerHead bounds an answer's head and its trailer, as RFC 9113, 6.5.2, counts
// them; it is told to the upstream.
const maxAnswerHead = 256 << 10

// keepFields is for how many fields of a head room is kept.
const keepFields = 256

// answerHead takes the fields of one header block as the decoder yields them, and
// vets each by RFC 9113, 8.2 and 8.3. It keeps the first flaw and reads on, since
// the decoder's state depends on the whole block. It belongs to the reader.
type answerHead struct {
	ignored  bool // the block is decoded for the decoder's sake only
	trailer  bool
	fields   []exchange.Field
	status   int
	length   int64 // of Content-Length, -1 without
	regular  bool  // a regular field was seen
	size     int
	tooLarge bool
	flaw     error
}

func (h *answerHead) begin(ignored, trailer bool) {
	*h = answerHead{ignored: ignored, trailer: trailer, fields: emptied(h.fields), length: -1}
}

// emptied is the room of the fields for others, unless that is worth giving back:
// connections keep it for as many streams as they have had at once.
func emptied(fields []exchange.Field) []exchange.Field {
	if cap(fields) > keepFields {
		return nil
	}
	clear(fields)
	return fields[:0]
}

func (h *answerHead) bad(format string, args ...any) {
	if h.flaw == nil {
		h.flaw = fmt.Errorf("%w: "+format, append([]any{http1.ErrAnswer}, args...)...)
	}
}

// field takes one field.
func (h *answerHead) field(f hpack.HeaderField) {
	if h.ignored || h.tooLarge {
		return
	}
	if h.size += len(f.Name) + len(f.Value) + fieldOverhead; h.size > maxAnswerHead {
		h.tooLarge = true
		h.bad("a head beyond %d bytes", maxAnswerHead)
		return
	}
	switch {
	case len(f.Name) > 0 && f.Name[0] == ':':
		h.pseudo(f.Name, f.Value)
		return
	case !validName(f.Name):
		h.bad("invalid header field name %q", clip(f.Name))
	case !validValue(f.Value):
		h.bad("invalid value of the field %s", clip(f.Name))
	}
	h.regular = true
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		h.bad("connection-specific field %s", f.Name)
	case "content-length":
		n, err := strconv.ParseUint(f.Value, 10, 62)
		if err != nil || h.length >= 0 || f.Value[0] == '+' || h.trailer {
			h.bad("invalid content-length")
			return
		}
		h.length = int64(n)
	default:
		if !exchange.HopByHop(f.Name) && (!h.trailer || admission.Trailer(f.Name)) {
			h.fields = append(h.fields, exchange.Field{Name: f.Name, Value: f.Value})
		}
	}
}

// pseudo takes a pseudo-header field: :status, once, before all others (8.3.2).
func (h *answerHead) pseudo(name, value string) {
	switch {
	case name != ":status":
		h.bad("pseudo-header field %q in an answer", clip(name))
		return
	case h.trailer:
		h.bad("pseudo-header field in a trailer")
		return
	case h.regular:
		h.bad("pseudo-header field behind another field")
		return
	case h.status != 0:
		h.bad(":status twice")
		return
	case len(value) != 3 || value[0] < '1' || value[0] > '5' || !digit(value[1]) || !digit(value[2]):
		h.bad("invalid :status")
		return
	}
	h.status = int(value[0]-'0')*100 + int(value[1]-'0')*10 + int(value[2]-'0')
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// verdict says what is wrong with the whole block, which ended tells to be the end
// of the answer.
func (h *answerHead) verdict(ended bool) error {
	switch {
	case h.flaw != nil:
	case h.trailer:
		if !ended {
			h.bad("fields behind the head that do not end the answer")
		}
	case h.status == 0:
		h.bad("no :status")
	case h.status == 101:
		// RFC 9113, 8.6.
		h.bad("it switches protocols")
	case h.status < 200 && ended:
		h.bad("an interim answer that ends it")
	}
	return h.flaw
}
