package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// memoryRoom is a room in memory.
type memoryRoom struct {
	s    *Memory
	room string
}

// Items implements Store.
func (s *Memory) Items(room string) ItemStore { return memoryRoom{s, room} }

// enter locks the store with what has expired gone.
func (i memoryRoom) enter(ctx context.Context, name string) error {
	if err := checkItem(i.room, name); err != nil {
		return err
	}
	if err := i.s.enter(ctx); err != nil {
		return err
	}
	i.s.expire(time.Now())
	return nil
}

// changed moves the sequence on. Needs the store's lock.
func (i memoryRoom) changed() int64 {
	i.s.revision++
	i.s.hints = append(i.s.hints, roomHint{i.s.revision, i.room})
	i.s.move()
	return i.s.revision
}

func (i memoryRoom) find(name string) (Item, error) {
	item, ok := i.s.items[i.room][name]
	if !ok {
		return Item{}, fmt.Errorf("%w: %s/%s", ErrNotFound, i.room, name)
	}
	item.Value = slices.Clone(item.Value)
	return item.Item, nil
}

// Get implements ItemStore.
func (i memoryRoom) Get(ctx context.Context, name string) (Item, error) {
	if err := i.enter(ctx, name); err != nil {
		return Item{}, err
	}
	defer i.s.mu.Unlock()
	return i.find(name)
}

// Put implements ItemStore.
func (i memoryRoom) Put(ctx context.Context, name string, value []byte, w Write) (int64, error) {
	if err := i.enter(ctx, name); err != nil {
		return 0, err
	}
	defer i.s.mu.Unlock()
	old, there := i.s.items[i.room][name]
	if w.At != Overwrite && w.At != old.Revision {
		return 0, conflictOf(w.At, there)
	}
	if i.s.items[i.room] == nil {
		i.s.items[i.room] = make(map[string]memoryItem)
	}
	item := memoryItem{Item: Item{Name: name, Value: slices.Clone(value), Revision: i.changed()}}
	if w.TTL > 0 {
		item.expires = time.Now().Add(time.Duration(seconds(w.TTL)) * time.Second)
	}
	i.s.items[i.room][name] = item
	return item.Revision, nil
}

// List implements ItemStore.
func (i memoryRoom) List(ctx context.Context) ([]Item, error) {
	if err := i.enter(ctx, "any"); err != nil {
		return nil, err
	}
	defer i.s.mu.Unlock()
	var out []Item
	for name := range i.s.items[i.room] {
		item, err := i.find(name)
		if err != nil {
			return nil, err
		}
		out = append(out, item)
	}
	slices.SortFunc(out, func(a, b Item) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Delete implements ItemStore.
func (i memoryRoom) Delete(ctx context.Context, name string) (Item, error) {
	if err := i.enter(ctx, name); err != nil {
		return Item{}, err
	}
	defer i.s.mu.Unlock()
	item, err := i.find(name)
	if err != nil {
		return Item{}, err
	}
	delete(i.s.items[i.room], name)
	i.changed()
	return item, nil
}

// Hold implements ItemStore.
func (i memoryRoom) Hold(ctx context.Context, name string, value []byte, _ time.Duration) error {
	if _, err := i.Put(ctx, name, value, Write{At: Overwrite}); err != nil {
		return err
	}
	<-ctx.Done()
	// Deleting what somebody else has deleted already is no failure.
	_, _ = i.Delete(context.WithoutCancel(ctx), name)
	return nil
}
