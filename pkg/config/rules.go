package config

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/pkg/config/expr"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// report collects what is wrong with one resource.
type report struct {
	key      Key
	env      *expr.Env
	problems Problems
}

func (r *report) fail(path, format string, args ...any) {
	r.problems = append(r.problems, &Problem{Key: r.key, Path: path, Reason: fmt.Sprintf(format, args...)})
}

// local checks what can be said of a resource without any other; size is that of
// its encoding in bytes.
func (r *report) local(res *configv1.Resource, size int) {
	if r.key.Kind == "" {
		r.fail("kind", "is not one that this release knows: expected %s", quoteList(Kinds()))
		return
	}
	if size > MaxDocument {
		r.fail("", "is %d bytes long: expected at most %d", size, MaxDocument)
		return
	}
	if !understood(res.ProtoReflect()) && !r.understood(res.ProtoReflect(), "") {
		return
	}
	r.metadata(res.GetMetadata())
	switch spec := res.GetSpec().(type) {
	case *configv1.Resource_Workspace:
		r.text("spec.description", spec.Workspace.GetDescription(), 1024)
		r.policies("spec.policies", spec.Workspace.GetPolicies())
		r.words("spec.hostnames", spec.Workspace.GetHostnames(), maxWords, badHost)
	case *configv1.Resource_Gateway:
		r.gateway(spec.Gateway)
	case *configv1.Resource_Route:
		r.route(spec.Route)
	case *configv1.Resource_Upstream:
		r.upstream(spec.Upstream)
	case *configv1.Resource_Policy:
		r.policy("spec", spec.Policy)
	case *configv1.Resource_Issuer:
		r.issuer(spec.Issuer)
	case *configv1.Resource_Application:
		r.application(spec.Application)
	case *configv1.Resource_Credential:
		r.credential(spec.Credential)
	case *configv1.Resource_KeySet:
		r.keySet(spec.KeySet)
	case *configv1.Resource_Certificate:
		r.certificate(spec.Certificate)
	case *configv1.Resource_IssuedCertificate:
		r.issuedCertificate(spec.IssuedCertificate)
	}
}

// understood reports whether this release knows every field and every enumerated
// value of a message.
func understood(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return false
	}
	ok := true
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch kind := fd.Kind(); {
		case kind == protoreflect.EnumKind && fd.IsList():
			for i := 0; ok && i < v.List().Len(); i++ {
				ok = fd.Enum().Values().ByNumber(v.List().Get(i).Enum()) != nil
			}
		case kind == protoreflect.EnumKind:
			ok = fd.Enum().Values().ByNumber(v.Enum()) != nil
		case kind != protoreflect.MessageKind || fd.IsMap():
		case fd.IsList():
			for i := 0; ok && i < v.List().Len(); i++ {
				ok = understood(v.List().Get(i).Message())
			}
		default:
			ok = understood(v.Message())
		}
		return ok
	})
	return ok
}

// understood says where a resource is not Understood. A node that dropped an
// unknown field could serve a route without its policy.
func (r *report) understood(m protoreflect.Message, path string) bool {
	ok := true
	if len(m.GetUnknown()) > 0 {
		r.fail(path, "has a field that this release does not know")
		ok = false
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := fd.JSONName()
		if path != "" {
			at = path + "." + at
		} else if group := fd.ContainingOneof(); group != nil && group.Name() == "spec" {
			at = "spec"
		}
		switch {
		case fd.Kind() == protoreflect.EnumKind && fd.IsList():
			for i := range v.List().Len() {
				ok = r.known(fd, v.List().Get(i).Enum(), at+"["+strconv.Itoa(i)+"]") && ok
			}
		case fd.Kind() == protoreflect.EnumKind:
			ok = r.known(fd, v.Enum(), at) && ok
		case fd.IsMap() || fd.Kind() != protoreflect.MessageKind:
		case fd.IsList():
			for i := range v.List().Len() {
				ok = r.understood(v.List().Get(i).Message(), at+"["+strconv.Itoa(i)+"]") && ok
			}
		default:
			ok = r.understood(v.Message(), at) && ok
		}
		return true
	})
	return ok
}

// known refuses a value of an enumeration that this release does not have.
func (r *report) known(fd protoreflect.FieldDescriptor, n protoreflect.EnumNumber, at string) bool {
	if fd.Enum().Values().ByNumber(n) != nil {
		return true
	}
	r.fail(at, "is %d, which this release does not know: expected %s", n, quoteList(enumNames(fd.Enum())))
	return false
}

func (r *report) metadata(m *configv1.Metadata) {
	if why := badName(m.GetName()); why != "" {
		r.fail("metadata.name", "%s", why)
	}
	switch workspace := m.GetWorkspace(); {
	case r.key.Kind == KindWorkspace:
		if workspace != "" {
			r.fail("metadata.workspace", "a Workspace has no workspace: leave it out")
		}
	default:
		if why := badName(workspace); why != "" {
			r.fail("metadata.workspace", "%s", why)
		}
	}
	if r.key.Kind == KindGateway && (r.key.Workspace != DefaultWorkspace || r.key.Name != "default") {
		r.fail("metadata.name", "there is one Gateway: expected workspace %q and name \"default\"", DefaultWorkspace)
	}
	r.labels("metadata.labels", m.GetLabels())
}

func (r *report) labels(path string, labels map[string]string) {
	if len(labels) > 64 {
		r.fail(path, "has %d entries: expected at most 64", len(labels))
	}
	for k, v := range labels {
		if k == "" || len(k) > 63 || !printable(k) {
			r.fail(path, "has the key %q: expected 1 to 63 bytes of printable text", shorten(k))
		}
		if len(v) > 63 || !printable(v) {
			r.fail(path+"["+k+"]", "expected at most 63 bytes of printable text")
		}
	}
}

// text checks free text for people.
func (r *report) text(path, s string, most int) {
	if len(s) > most {
		r.fail(path, "is %d bytes long: expected at most %d", len(s), most)
	} else if !printable(s) {
		r.fail(path, "has control characters: expected printable text")
	}
}

// words checks a list of words that each satisfy valid and stand once.
func (r *report) words(path string, words []string, most int, valid func(string) string) {
	if len(words) > most {
		r.fail(path, "has %d entries: expected at most %d", len(words), most)
		return
	}
	seen := make(map[string]int, len(words))
	for i, w := range words {
		at := path + "[" + strconv.Itoa(i) + "]"
		if why := valid(w); why != "" {
			r.fail(at, "%s", why)
		} else if first, ok := seen[w]; ok {
			r.fail(at, "%q repeats [%d]: expected each once", shorten(w), first)
		} else {
			seen[w] = i
		}
	}
}

// duration checks a duration that is set; one left out has its default.
func (r *report) duration(path string, d *durationpb.Duration, least, most time.Duration) {
	if d == nil {
		return
	}
	if v := d.AsDuration(); d.CheckValid() != nil || v < least || v > most {
		r.fail(path, "is %s: expected %s to %s", FormatDuration(v), FormatDuration(least), FormatDuration(most))
	}
}

func (r *report) timestamp(path string, t *timestamppb.Timestamp) {
	if t != nil && t.CheckValid() != nil {
		r.fail(path, "is not a time: expected one from year 1 to 9999")
	}
}

func (r *report) expression(path, src string, want expr.Type) {
	if src == "" {
		return
	}
	if _, err := r.env.Compile(src, want); err != nil {
		r.fail(path, "%v", err)
	}
}

// Bounds on one regular expression: its text, and the instructions that it
// compiles to, since a{1000} is short.
const (
	maxRegex             = 1024
	maxRegexInstructions = 4096
)

func (r *report) regex(path, src string) {
	if why := badRegex(src); why != "" {
		r.fail(path, "%s", why)
	}
}

func badRegex(src string) string {
	if src == "" || len(src) > maxRegex {
		return fmt.Sprintf("is %d bytes long: expected a regular expression (RE2) of 1 to %d bytes", len(src), maxRegex)
	}
	parsed, err := syntax.Parse(src, syntax.Perl)
	if err != nil {
		why := err.Error()
		var se *syntax.Error
		if errors.As(err, &se) {
			why = string(se.Code) + ": `" + shorten(se.Expr) + "`"
		}
		return "is not a regular expression (RE2): " + why
	}
	prog, err := syntax.Compile(parsed.Simplify())
	if err != nil || len(prog.Inst) > maxRegexInstructions {
		return fmt.Sprintf("compiles to too many instructions: expected at most %d", maxRegexInstructions)
	}
	if _, err := regexp.Compile(`\A(?:` + src + `)\z`); err != nil {
		return "is not a regular expression (RE2): " + err.Error()
	}
	return ""
}
