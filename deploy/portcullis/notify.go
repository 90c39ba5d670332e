package main

import (
	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells the service manager, when there is one, how this process is doing
// (sd_notify(3)).
func notify(state string) error {
	_, err := daemon.SdNotify(false, state)
	return err
}
