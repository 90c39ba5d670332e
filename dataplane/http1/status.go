package http1

import (
	"net/http"
	"strconv"
	"time"
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
