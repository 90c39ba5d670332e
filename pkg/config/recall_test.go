package config

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"weak"

	"google.golang.org/protobuf/proto"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Whoever holds on to an old configuration, such as a request that takes long, must
// not keep everything that was ever configured since.
func TestAnOldConfigurationLetsGoOfNewerOnes(t *testing.T) {
	first, err := Check(decode(t, shop))
	if err != nil {
		t.Fatal(err)
	}
	application := func(i int) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Workspace: DefaultWorkspace, Name: "a", Labels: map[string]string{"n": fmt.Sprint(i)}},
			Spec: &configv1.Resource_Application{Application: &configv1.Application{}}}
	}
	const changes = 20
	var passed []weak.Pointer[configv1.Resource]
	c := first
	for i := range changes {
		r := application(i)
		passed = append(passed, weak.Make(r))
		if c, _, err = c.Apply(Delta{Upserts: []*configv1.Resource{r}, Owned: true}); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	kept := 0
	for _, p := range passed {
		if p.Value() != nil {
			kept++
		}
	}
	// The newest, and at most the one that the first remembers.
	if kept > 2 {
		t.Errorf("%d of %d superseded documents are kept", kept, changes)
	}
	runtime.KeepAlive(first)
	runtime.KeepAlive(c)
}

// Many put changes on one configuration at once, and go on from what each got: none
// is given what another's change led to.
func TestMemoriesDoNotMix(t *testing.T) {
	start, err := Check(decode(t, shop))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			at := start
			for i := range 100 {
				put := &configv1.Resource{Metadata: &configv1.Metadata{Workspace: DefaultWorkspace, Name: fmt.Sprint("a", (g+i)%3)},
					Spec: &configv1.Resource_Application{Application: &configv1.Application{Description: fmt.Sprint(i % 4)}}}
				next, _, err := at.Apply(Delta{Upserts: []*configv1.Resource{put}, Owned: true})
				if err != nil {
					t.Error(err)
					return
				}
				var sum [32]byte
				for r := range next.All() {
					xor(&sum, Digest(r))
				}
				if got, _ := next.Get(KeyOf(put)); sum != next.Digest() || !proto.Equal(got, put) {
					t.Errorf("%v, digest %x of %x; want %v", got, next.Digest(), sum, put)
				}
				if at = next; i%5 == 0 {
					at = start
				}
			}
		})
	}
	wg.Wait()
}
