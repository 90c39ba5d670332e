package gateway

import (
	"strings"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// identityPrefix begins every header by which the gateway tells an upstream who
// calls. Whatever a client sends under it is dropped, on every route, also where
// nobody authenticated, so that an upstream can believe it.
const identityPrefix = "X-Portcullis-"

// addIdentity replaces the identity headers by what was proved.
func addIdentity(e *exchange.Exchange) {
	header := &e.Request.Header
	header.DelFunc(func(f exchange.Field) bool {
		return len(f.Name) >= len(identityPrefix) && exchange.EqualFold(f.Name[:len(identityPrefix)], identityPrefix)
	})
	id := &e.Identity
	if id.Method == "" {
		return
	}
	header.Add("X-Portcullis-Auth-Method", id.Method)
	add := func(name, value string) {
		if value != "" {
			header.Add(name, fieldValue(value))
		}
	}
	add("X-Portcullis-Subject", id.Subject)
	add("X-Portcullis-Client", id.Client)
	add("X-Portcullis-Issuer", id.Issuer)
	addList(header, "X-Portcullis-Scopes", id.Scopes, " ")
	addList(header, "X-Portcullis-Roles", id.Roles, ",")
	addList(header, "X-Portcullis-Groups", id.Groups, ",")
}

// addList joins values; within one, the separator is escaped like all that a
// field value cannot hold, so that a role "a,b" is not two.
func addList(header *exchange.Header, name string, values []string, separator string) {
	if len(values) == 0 {
		return
	}
	if len(values) == 1 && !strings.Contains(values[0], separator) {
		header.Add(name, fieldValue(values[0]))
		return
	}
	var b strings.Builder
	for i, value := range values {
		if i > 0 {
			b.WriteString(separator)
		}
		b.WriteString(strings.ReplaceAll(fieldValue(value), separator, escape(separator[0])))
	}
	header.Add(name, b.String())
}

// fieldValue percent-encodes what a field value cannot carry unharmed: control
// and non-ASCII bytes, '%', and blanks at the ends (RFC 9110, 5.5).
func fieldValue(s string) string {
	clean := func(i int) bool {
		c := s[i]
		return c > ' ' && c < 0x7f && c != '%' || c == ' ' && i > 0 && i < len(s)-1
	}
	for i := range len(s) {
		if !clean(i) {
			var b strings.Builder
			for j := range len(s) {
				if clean(j) {
					b.WriteByte(s[j])
				} else {
					b.WriteString(escape(s[j]))
				}
			}
			return b.String()
		}
	}
	return s
}

func escape(c byte) string {
	const digits = "0123456789ABCDEF"
	return string([]byte{'%', digits[c>>4], digits[c&15]})
}
