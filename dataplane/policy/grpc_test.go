package policy

import (
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

func TestRefusalsTowardGRPC(t *testing.T) {
	for reason, want := range map[Reason]string{
		NoRoute: "12", CredentialMissing: "16", TokenExpired: "16", RuleDenied: "7", LimitExceeded: "8", RequestMalformed: "13",
		RequestTooLarge: "8", KeysUnavailable: "14", NotReady: "14", UpstreamUnavailable: "14", UpstreamTimeout: "4", ClientGone: "1", InternalError: "13",
	} {
		d := &Denial{Reason: reason, Detail: "100 % ü", Challenges: []string{"Bearer"}, RetryAfter: 1500 * time.Millisecond}
		for _, contentType := range []string{"application/grpc", "application/grpc+proto", "Application/GRPC-Web-Text"} {
			r := &exchange.Request{Header: exchange.HeaderOf(exchange.Field{Name: "content-type", Value: contentType})}
			got := d.ResponseTo(r, "id", "")
			h := &got.Header
			if got.Status != 200 || got.Body.Reader != nil || h.Get("grpc-status") != want || h.Get("grpc-message") != string(reason)+": 100 %25 %C3%BC" ||
				h.Get("content-type") != contentType || h.Get("www-authenticate") != "Bearer" || h.Get("retry-after") != "2" {
				t.Errorf("%s: %d %v", reason, got.Status, h.Fields())
			}
		}
	}
	for _, contentType := range []string{"", "application/json", "application/grpcx", "application/grpc/x"} {
		r := &exchange.Request{Header: exchange.HeaderOf(exchange.Field{Name: "Content-Type", Value: contentType})}
		if got := (&Denial{Reason: NoRoute}).ResponseTo(r, "", ""); got.Status != 404 || got.Header.Get("Grpc-Status") != "" {
			t.Errorf("%q: %d %v", contentType, got.Status, got.Header.Fields())
		}
	}
}
