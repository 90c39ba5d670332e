package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"unicode"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// problem is what a refused REST call is answered with (RFC 9457).
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	// Reason is stable; Detail is for people.
	Reason string `json:"reason"`
	// Problems are what is wrong with the documents of a change.
	Problems []*controlv1.Problem `json:"problems,omitempty"`
}

// reasons are the names of refusals, where the code's own would mislead.
var reasons = map[codes.Code]string{
	codes.PermissionDenied: "forbidden", codes.InvalidArgument: "invalid_request", codes.AlreadyExists: "exists",
	codes.Aborted: "conflict", codes.Unimplemented: "no_such_method",
}

// RESTError answers a REST call that failed with problem details. It is for
// runtime.WithErrorHandler.
func RESTError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
	httpStatus := 0
	var withStatus *runtime.HTTPStatusError
	if errors.As(err, &withStatus) {
		httpStatus, err = withStatus.HTTPStatus, withStatus.Err
	}
	st := status.Convert(err)
	switch {
	case st.Code() == codes.Unimplemented:
		// Every method is implemented: the gateway says so of a path's wrong method.
		httpStatus = http.StatusMethodNotAllowed
	case httpStatus == 0:
		httpStatus = runtime.HTTPStatusFromCode(st.Code())
	}
	p := problem{Title: http.StatusText(httpStatus), Status: httpStatus, Detail: st.Message(), Reason: reasons[st.Code()]}
	if p.Reason == "" {
		p.Reason = snake(st.Code().String())
	}
	p.Type = "https://portcullis.dev/problems/" + p.Reason
	for _, detail := range st.Details() {
		if plan, ok := detail.(*adminv1.PlanResponse); ok {
			p.Problems = append(p.Problems, plan.Problems...)
		}
	}
	if httpStatus == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="portcullis"`) // RFC 6750, section 3
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(httpStatus)
	// Who does not take the answer cannot be told so.
	_ = json.NewEncoder(w).Encode(p)
}

// snake turns a code's name, NotFound, into not_found.
func snake(name string) string {
	var out strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			out.WriteByte('_')
		}
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}
