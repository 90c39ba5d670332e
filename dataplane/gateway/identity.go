package gateway

import "portcullis.dev/portcullis/dataplane/exchange"

// identityPrefix begins every header by which the gateway tells an upstream who
// calls. Whatever a client sends under it is dropped, on every route, also where
// nobody authenticated, so that an upstream can believe it.
const identityPrefix = "X-Portcullis-"

// addIdentity replaces the identity headers by what was proved.
func (f *flight) addIdentity(e *exchange.Exchange) {
	header := &e.Request.Header
	header.DelFunc(func(f exchange.Field) bool {
		return len(f.Name) >= len(identityPrefix) && exchange.EqualFold(f.Name[:len(identityPrefix)], identityPrefix)
	})
	id := &e.Identity
	if id.Method == "" {
		return
	}
	header.Add("X-Portcullis-Auth-Method", id.Method)
	f.memory.add(header, "X-Portcullis-Subject", id.Subject)
	f.memory.add(header, "X-Portcullis-Client", id.Client)
	f.memory.add(header, "X-Portcullis-Issuer", id.Issuer)
	f.memory.addList(header, "X-Portcullis-Scopes", id.Scopes, ' ')
	f.memory.addList(header, "X-Portcullis-Roles", id.Roles, ',')
	f.memory.addList(header, "X-Portcullis-Groups", id.Groups, ',')
}

// add adds a field, unless the value is empty.
func (m *memory) add(header *exchange.Header, name, value string) {
	if value == "" {
		return
	}
	if !clean(value, 0) {
		start := len(m.b)
		m.b = appendValue(m.b, value, 0)
		value = m.from(start)
	}
	header.Add(name, value)
}

// addList joins values; within one, the separator is escaped like all that a
// field value cannot hold, so that a role "a,b" is not two.
func (m *memory) addList(header *exchange.Header, name string, values []string, separator byte) {
	switch {
	case len(values) == 0:
		return
	case len(values) == 1 && clean(values[0], separator):
		header.Add(name, values[0])
		return
	}
	start := len(m.b)
	for i, value := range values {
		if i > 0 {
			m.b = append(m.b, separator)
		}
		m.b = appendValue(m.b, value, separator)
	}
	header.Add(name, m.from(start))
}

// clean tells whether a field carries the value unharmed (RFC 9110, 5.5) and
// nobody takes it for two.
func clean(s string, separator byte) bool {
	for i := range len(s) {
		if !carried(s, i, separator) {
			return false
		}
	}
	return true
}

// carried is false for control and non-ASCII bytes, '%', the separator, and
// blanks at the ends.
func carried(s string, i int, separator byte) bool {
	c := s[i]
	return c != separator && (c > ' ' && c < 0x7f && c != '%' || c == ' ' && i > 0 && i < len(s)-1)
}

// appendValue percent-encodes what a field value cannot carry.
func appendValue(b []byte, s string, separator byte) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; carried(s, i, separator) {
			b = append(b, c)
		} else {
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return b
}
