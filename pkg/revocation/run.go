package revocation

import (
	"context"
	"time"
)

// expireEvery is how often entries that can hit nothing any more are dropped.
const expireEvery = time.Minute

// Run drops what has expired until ctx ends. It tells the time by what has passed
// on the monotonic clock since it began, so that a wall clock that jumps ahead,
// and back again, revives no token.
func (s *Set) Run(ctx context.Context) error {
	tick := time.NewTicker(expireEvery)
	defer tick.Stop()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.Expire(began.Unix() + int64(time.Since(began)/time.Second))
		}
	}
}
