package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"

	"portcullis.dev/portcullis/dataplane/listen"
)

// listenUsage explains --listen.
const listenUsage = `address for clients, as [name=]address; may be repeated, each with another name. What a socket speaks says the Gateway's listener of its name; one named "http", also when no name is given, speaks HTTP in clear text unless that says otherwise`

var socketName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// parseListen reads the values of --listen: addresses by name.
func parseListen(values []string) (map[string]string, error) {
	addresses := map[string]string{}
	for _, value := range values {
		name, address, named := strings.Cut(value, "=")
		if !named {
			name, address = listen.HTTP, value
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, fmt.Errorf("--listen %q: expected [name=]address, such as https=0.0.0.0:8443: %w", value, err)
		}
		if !socketName.MatchString(name) || name == metricsSocket || name == debugSocket {
			return nil, fmt.Errorf("--listen %q: expected a name of lower-case letters, digits and '-', other than %q and %q", value, metricsSocket, debugSocket)
		}
		if have, twice := addresses[name]; twice {
			return nil, fmt.Errorf("--listen %q: the socket %q is at %s already: expected each name once", value, name, have)
		}
		addresses[name] = address
	}
	if len(addresses) == 0 {
		return nil, errors.New("--listen: expected at least one address")
	}
	return addresses, nil
}

// openSockets takes each socket that was passed and opens the other addresses, or
// none.
func openSockets(given *passed, addresses map[string]string) (map[string]net.Listener, error) {
	sockets := map[string]net.Listener{}
	for _, name := range slices.Sorted(maps.Keys(addresses)) {
		ln, err := given.listen(name, addresses[name])
		if err != nil {
			return nil, errors.Join(explainListen(err), closeSockets(sockets))
		}
		sockets[name] = ln
	}
	return sockets, nil
}

func closeSockets(sockets map[string]net.Listener) error {
	var errs []error
	for _, ln := range sockets {
		errs = append(errs, ln.Close())
	}
	return errors.Join(errs...)
}
