package admission

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"portcullis.dev/portcullis/dataplane/exchange"
)

func TestPace(t *testing.T) {
	p := Pace{Patience: 30 * time.Second}
	if got := p.Allows(); got != 30*time.Second {
		t.Error("at first:", got)
	}
	p.Waited(20 * time.Second)
	if got := p.Allows(); got != 10*time.Second {
		t.Error("after a wait:", got)
	}
	p.Received(5 * minBodyRate)
	if got := p.Allows(); got != 15*time.Second {
		t.Error("after some bytes:", got)
	}
	p.Received(1000 * minBodyRate)
	if got := p.Allows(); got != 30*time.Second {
		t.Error("one wait is never longer:", got)
	}
}

// Whoever keeps to the rate is never cut, whoever does not is in the end, and no
// amount of bytes makes the sum wrap.
func TestPaceHoldsToTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Pace{Patience: time.Duration(rapid.IntRange(1, 60).Draw(t, "patience")) * time.Second}
		slow := rapid.Bool().Draw(t, "slow")
		for range rapid.IntRange(1, 400).Draw(t, "waits") {
			wait := time.Duration(rapid.IntRange(1, int(p.Patience/time.Second)).Draw(t, "wait")) * time.Second
			if p.Allows() < wait {
				if !slow {
					t.Fatalf("cut at %v of %v", p.Allows(), wait)
				}
				return
			}
			p.Waited(wait)
			if !slow {
				p.Received(int(wait/time.Second) * minBodyRate)
			}
		}
		p.Received(1 << 62)
		if got := p.Allows(); got != p.Patience {
			t.Fatal(got)
		}
	})
}

func TestQuiet(t *testing.T) {
	for contentType, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "Application/GRPC; x": true, "application/grpc-web": false,
		"application/grpcx": false, "text/plain": false, "": false,
	} {
		r := exchange.Request{Method: "POST", Header: exchange.HeaderOf(exchange.Field{Name: "content-type", Value: contentType})}
		if Quiet(&r) != want {
			t.Errorf("%q", contentType)
		}
		if r.Method = "PUT"; Quiet(&r) {
			t.Errorf("%q with PUT", contentType)
		}
	}
}

func TestTrailer(t *testing.T) {
	for name, want := range map[string]bool{
		"Grpc-Status": true, "X-Sum": true, "Content-Digest": true, "Content-Length": false, "Content-Type": false, "Transfer-Encoding": false,
		"Authorization": false, "X-Forwarded-For": false, "X-Portcullis-Subject": false, "X_Sum": false, "Host": false, "Forwarded": false,
		"X-Request-Id": false, "X-Real-Ip": false, "If-Match": false, "set-cookie": false, "Access-Control-Allow-Origin": false,
	} {
		if Trailer(name) != want {
			t.Errorf("%s: %t", name, !want)
		}
	}
}
