package gateway

import (
	"portcullis.dev/portcullis/dataplane/route"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// commit makes the stage live: one swap of one pointer. What was replaced is
// given back after it. All that can fail comes before anything changes.
func (s *stage) commit(version config.Version) error {
	g := s.g
	table, err := s.table()
	if err != nil {
		return err
	}
	for key, compiled := range s.routes {
		s.pause()
		if compiled != nil {
			compiled.counters = g.cfg.Counters.Route(key.Workspace, key.Name)
		}
	}
	// Keys first: a key that was withdrawn is out before anything else is in.
	for issuer, keys := range s.keys {
		if err := issuer.SetKeys(keys); err != nil {
			return err
		}
	}
	snapshot := &Snapshot{Version: version, checked: s.checked, routes: table, settings: s.settings()}
	replace(g.compiled.routes, s.routes)
	g.applySettings(snapshot.settings)
	g.live.Store(snapshot)
	for _, old := range replace(g.compiled.upstreams, s.upstreams) {
		old.Release()
	}
	replace(g.compiled.issuers, s.issuers)
	for key, staged := range s.issuers {
		if staged == nil {
			g.cfg.Tokens.Forget(key.Workspace + "/" + key.Name)
		}
	}
	for key, staged := range s.routes {
		if staged == nil {
			g.cfg.Counters.Forget(key.Workspace, key.Name)
		}
	}
	return nil
}

// table puts the staged routes in place of those before.
func (s *stage) table() (route.Table[*target], error) {
	var before route.Table[*target]
	if live := s.g.live.Load(); live != nil && !s.all {
		before = live.routes
	}
	batch := before.Edit()
	for key, compiled := range s.routes {
		s.pause()
		if old := s.g.compiled.routes[key]; old != nil && !s.all {
			for _, p := range old.patterns {
				batch.Delete(p)
			}
		}
		if compiled == nil {
			continue
		}
		for i, p := range compiled.patterns {
			if err := batch.Put(p, compiled.targets[i]); err != nil {
				return before, problemAt(key, "spec", err)
			}
		}
	}
	return batch.Table(), nil
}

// replace merges staged into current, a nil value meaning removal, and returns
// what was replaced.
func replace[V any](current, staged map[config.Key]*V) []*V {
	var old []*V
	for key, value := range staged {
		if before := current[key]; before != nil {
			old = append(old, before)
		}
		if value == nil {
			delete(current, key)
		} else {
			current[key] = value
		}
	}
	return old
}

// settings are those of the Gateway resource; the same value as long as that is
// the same, so that who derives something from it can tell.
func (s *stage) settings() *configv1.Gateway {
	resource, ok := s.checked.Get(config.Key{Kind: config.KindGateway, Workspace: config.DefaultWorkspace, Name: "default"})
	if !ok {
		return s.g.unset
	}
	return resource.GetGateway()
}
