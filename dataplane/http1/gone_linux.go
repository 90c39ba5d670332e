package http1

import "golang.org/x/sys/unix"

// pollShut asks whether the other end has shut down its side, whatever is unread.
const pollShut = unix.POLLRDHUP
