package config

import (
	"bytes"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// What stands as it is must be what the emitter writes.
func TestScalarsAreWrittenAsTheEmitterDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		timeouts := &configv1.Timeouts{Request: durationpb.New(time.Duration(rapid.Int64().Draw(t, "nanoseconds")))}
		route := &configv1.Route{Public: true, Priority: rapid.Int32().Draw(t, "priority"), Hostnames: []string{rapid.String().Draw(t, "text")}}
		for _, m := range []protoreflect.Message{timeouts.ProtoReflect(), route.ProtoReflect()} {
			m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
				if fd.IsList() {
					v = v.List().Get(0)
				}
				n, err := encodeValue(v, fd)
				if err != nil || n.Kind != yaml.ScalarNode {
					return true
				}
				want, err := yaml.Dump(n, yaml.WithLineWidth(-1), yaml.WithIndent(2))
				if err != nil || dumpText(n) != string(bytes.TrimSuffix(want, []byte("\n"))) {
					t.Fatalf("%s: %q; want %q, %v", fd.Name(), dumpText(n), want, err)
				}
				return true
			})
		}
	})
}

func TestDiffComparesMessagesByTheirEncodings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawResource(t), drawResource(t)
		var d differ
		if rapid.Bool().Draw(t, "same") {
			b = proto.CloneOf(a)
		}
		if got, want := d.equalMessages(a.ProtoReflect(), b.ProtoReflect()), proto.Equal(a, b); got != want {
			t.Fatalf("%v and %v are equal: %v; want %v", a, b, got, want)
		}
		if a.GetRoute() != nil && b.GetRoute() != nil && proto.Equal(a.GetRoute(), b.GetRoute()) != (len(Diff(a, &configv1.Resource{Metadata: a.Metadata, Spec: b.Spec})) == 0) {
			t.Fatalf("the difference of %v and %v is %v", a, b, Diff(a, b))
		}
	})
}
