package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"portcullis.dev/portcullis/dataplane/exchange"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// addHeaders compiles changes of header fields, toward the upstream and toward
// the client. Those toward the client hold for refusals too.
func (c *compiler) addHeaders(d declared, h *configv1.Headers) error {
	request, err := changesOf(h.GetRequest())
	if err != nil {
		return fmt.Errorf("headers.request: %w", err)
	}
	response, err := changesOf(h.GetResponse())
	if err != nil {
		return fmt.Errorf("headers.response: %w", err)
	}
	if !request.empty() {
		c.request = append(c.request, Step{Transform, d.Origin, request})
	}
	if !response.empty() {
		c.after = append(c.after, func(_ *exchange.Exchange, r *exchange.Response) { response.apply(&r.Header) })
	}
	return nil
}

// headerChanges are applied in the order remove, set, add; each in the order of
// names, so that every node sends the same.
type headerChanges struct {
	remove   []string
	set, add []exchange.Field
}

// Do changes the request.
func (h *headerChanges) Do(e *exchange.Exchange) *Denial {
	h.apply(&e.Request.Header)
	return nil
}

func (h *headerChanges) apply(to *exchange.Header) {
	for _, name := range h.remove {
		to.Del(name)
	}
	for _, f := range h.set {
		to.Set(f.Name, f.Value)
	}
	for _, f := range h.add {
		to.Add(f.Name, f.Value)
	}
}

func (h *headerChanges) empty() bool { return len(h.remove)+len(h.set)+len(h.add) == 0 }

func changesOf(c *configv1.HeaderChanges) (*headerChanges, error) {
	h := &headerChanges{remove: c.GetRemove()}
	for _, name := range h.remove {
		if !fieldName(name) {
			return nil, fmt.Errorf("remove: %q is no field name", name)
		}
	}
	var err error
	if h.set, err = fieldsOf(c.GetSet()); err != nil {
		return nil, fmt.Errorf("set: %w", err)
	}
	if h.add, err = fieldsOf(c.GetAdd()); err != nil {
		return nil, fmt.Errorf("add: %w", err)
	}
	return h, nil
}

func fieldsOf(values map[string]string) ([]exchange.Field, error) {
	var fields []exchange.Field
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := values[name]
		if !fieldName(name) || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return nil, fmt.Errorf("%q is no field name, or its value no field value", name)
		}
		fields = append(fields, exchange.Field{Name: name, Value: value})
	}
	return fields, nil
}

// fieldName says whether s is a token (RFC 9110 section 5.6.2).
func fieldName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}
