package acme

import (
	"context"
	"errors"
	"time"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
)

const (
	// alarmEvery is how often one certificate's expiry is told of.
	alarmEvery = 24 * time.Hour
	// alarmAhead is the longest time ahead of which it is told. A certificate that is
	// renewed in time has a third of its life left; half of that is a cause to worry.
	alarmAhead = 30 * 24 * time.Hour
)

// alarms are when each certificate's expiry was told of last, by whichever replica.
// Only the goroutine of Run uses them.
type alarms struct{ raised map[config.Key]time.Time }

// look tells of every certificate that expires, whether obtained or given.
func (k *Keeper) look(ctx context.Context, sources []Source, now time.Time) {
	there := make(map[config.Key]bool, len(sources))
	for _, source := range sources {
		there[source.Key] = true
		chain := source.Certificate.GetCertificate()
		if source.Certificate.GetAcme() != nil {
			chain = source.Issued.GetCertificate()
		}
		if last, ok := k.alarms.raised[source.Key]; ok && now.Sub(last) < alarmEvery {
			continue
		}
		if leaf := leafOf(chain); leaf != nil && leaf.NotAfter.Sub(now) < min(leaf.NotAfter.Sub(leaf.NotBefore)/6, alarmAhead) {
			k.alarm(ctx, source, leaf.NotAfter, now)
		}
	}
	for key := range k.alarms.raised {
		if !there[key] {
			delete(k.alarms.raised, key)
		}
	}
}

// alarm tells of one expiry, once a day in the whole cluster.
func (k *Keeper) alarm(ctx context.Context, source Source, at, now time.Time) {
	_, err := k.cfg.Locks.Put(ctx, "expiry/"+source.Key.Workspace+"/"+source.Key.Name, []byte(k.cfg.Replica), store.Write{TTL: alarmEvery})
	k.alarms.raised[source.Key] = now
	if errors.Is(err, store.ErrExists) {
		return
	}
	log := k.cfg.Log.With("workspace", source.Key.Workspace, "certificate", source.Key.Name,
		"expires_at", at, "problem", source.Issued.GetProblem())
	if at.After(now) {
		log.Warn("a certificate is about to expire")
	} else {
		log.Error("a certificate has expired: clients refuse it")
	}
}
