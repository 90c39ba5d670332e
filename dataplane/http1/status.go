package http1

import (
	"net/http"
	"strconv"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// statusLines are rendered once.
var statusLines = makeStatusLines()

func makeStatusLines() (lines [500]string) {
	for i := range lines {
		code := 100 + i
		lines[i] = "HTTP/1.1 " + strconv.Itoa(code) + " " + http.StatusText(code) + "\r\n"
	}
	return lines
}

// appendStatus renders the status line of a status from 100 to 599.
func appendStatus(b []byte, status int) []byte { return append(b, statusLines[status-100]...) }

// date is the Date field of one second.
type date struct {
	unix int64
	line string
}

// appendDate renders Date (RFC 9110, 6.6.1), made once a second.
func (s *Server) appendDate(b []byte, now time.Time) []byte {
	d := s.date.Load()
	if unix := now.Unix(); d == nil || d.unix != unix {
		d = &date{unix, "Date: " + now.UTC().Format(http.TimeFormat) + "\r\n"}
		s.date.Store(d)
	}
	return append(b, d.line...)
}

// appendHead renders status line and fields.
func (c *conn) appendHead(b []byte, resp *exchange.Response, frame framing) []byte {
	b = appendStatus(b, resp.Status)
	dated := false
	for i, fields := 0, resp.Header.Fields(); i < len(fields); i++ {
		f := &fields[i]
		switch len(f.Name) {
		case 4:
			dated = dated || exchange.EqualFold(f.Name, "Date")
		case 12:
			if exchange.EqualFold(f.Name, "X-Request-Id") {
				continue
			}
		}
		if !exchange.HopByHop(f.Name) {
			b = appendField(b, f)
		}
	}
	if !dated && resp.Status >= 200 {
		b = c.server.appendDate(b, c.last)
	}
	b = append(b, "X-Request-Id: "...)
	b = append(b, c.exchange.ID...)
	b = append(b, '\r', '\n')
	switch {
	case resp.Status == 101:
		b = append(b, "Connection: Upgrade\r\nUpgrade: "...)
		b = append(b, c.exchange.Request.Upgrade...)
		return append(b, "\r\n\r\n"...)
	case frame == byChunks:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case frame == byLength, frame == noBody && resp.Body.Length >= 0 && resp.Status != 204 && resp.Status != 304:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, resp.Body.Length, 10)
		b = append(b, '\r', '\n')
	}
	switch {
	case !c.keep:
		b = append(b, "Connection: close\r\n"...)
	case c.head.minor == 0:
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	return append(b, '\r', '\n')
}

// appendField renders a field as it is. A name that is none is left out, and
// what could end a line is a blank in a value (RFC 9110, 5.5).
func appendField(b []byte, f *exchange.Field) []byte {
	if f.Name == "" {
		return b
	}
	for i := 0; i < len(f.Name); i++ {
		if classes[f.Name[i]]&inToken == 0 {
			return b
		}
	}
	b = append(b, f.Name...)
	b = append(b, ':', ' ')
	start := len(b)
	b = append(b, f.Value...)
	for i := valueEnd(b, start); i < len(b); i = valueEnd(b, i+1) {
		b[i] = ' '
	}
	return append(b, '\r', '\n')
}
