package http2

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/http1"
)

// said is what an upstream says to the first request of a connection, and what must
// come of it.
type said struct {
	say func(r *raw, id uint32)
	// err is the class of the request's error; nil: body is its answer.
	err  error
	body string
	// dies: the connection ends, with a GOAWAY of the code; otherwise the stream is
	// reset with it, and the connection carries another request.
	dies bool
	code h2.ErrCode
	// head asks with HEAD.
	head bool
}

func headOf(pairs ...string) func(*raw, uint32) {
	return func(r *raw, id uint32) { r.says(id, true, pairs...) }
}

func bodyOf(length string, data ...string) func(*raw, uint32) {
	return func(r *raw, id uint32) {
		if length == "" {
			r.says(id, false, ":status", "200")
		} else {
			r.says(id, false, ":status", "200", "content-length", length)
		}
		for i, one := range data {
			_ = r.WriteData(id, i == len(data)-1, []byte(one))
		}
	}
}

func fineBefore(then func(*raw, uint32)) func(*raw, uint32) {
	return func(r *raw, id uint32) { r.says(id, false, ":status", "200"); then(r, id) }
}

func rawFrame(kind h2.FrameType, flags h2.Flags, payload ...byte) func(*raw, uint32) {
	return func(r *raw, id uint32) { _ = r.WriteRawFrame(kind, flags, id, payload) }
}

func repeated(times int, say func(*raw, uint32)) func(*raw, uint32) {
	return func(r *raw, id uint32) {
		for range times {
			say(r, id)
		}
	}
}

const (
	protocol = h2.ErrCodeProtocol
	calm     = h2.ErrCodeEnhanceYourCalm
)

// heads are answers whose head decides.
var heads = map[string]said{
	"an answer":                   {say: bodyOf("2", "ok"), body: "ok"},
	"in pieces":                   {say: bodyOf("", "a", "", "b", ""), body: "ab"},
	"interim ones first":          {say: func(r *raw, id uint32) { r.says(id, false, ":status", "103", "link", "x"); bodyOf("2", "ok")(r, id) }, body: "ok"},
	"to HEAD, with a length":      {say: headOf(":status", "200", "content-length", "9"), head: true},
	"304 with a length":           {say: headOf(":status", "304", "content-length", "9")},
	"no :status":                  {say: headOf("a", "b"), err: http1.ErrAnswer, code: protocol},
	":status twice":               {say: headOf(":status", "200", ":status", "200"), err: http1.ErrAnswer, code: protocol},
	":status twice, then empty":   {say: headOf(":status", "200", ":status", ""), err: http1.ErrAnswer, code: protocol},
	":status late and empty":      {say: headOf("a", "b", ":status", ""), err: http1.ErrAnswer, code: protocol},
	":status late":                {say: headOf("a", "b", ":status", "200"), err: http1.ErrAnswer, code: protocol},
	":status is no number":        {say: headOf(":status", "2x0"), err: http1.ErrAnswer, code: protocol},
	":status too long":            {say: headOf(":status", "0200"), err: http1.ErrAnswer, code: protocol},
	":status 099":                 {say: headOf(":status", "099"), err: http1.ErrAnswer, code: protocol},
	":status 600":                 {say: headOf(":status", "600"), err: http1.ErrAnswer, code: protocol},
	":path in an answer":          {say: headOf(":status", "200", ":path", "/"), err: http1.ErrAnswer, code: protocol},
	"upper case":                  {say: headOf(":status", "200", "X-Up", "1"), err: http1.ErrAnswer, code: protocol},
	"space in a name":             {say: headOf(":status", "200", "x y", "1"), err: http1.ErrAnswer, code: protocol},
	"empty name":                  {say: headOf(":status", "200", "", "1"), err: http1.ErrAnswer, code: protocol},
	"line break in a value":       {say: headOf(":status", "200", "x", "a\r\nb: c"), err: http1.ErrAnswer, code: protocol},
	"NUL in a value":              {say: headOf(":status", "200", "x", "a\x00"), err: http1.ErrAnswer, code: protocol},
	"blank around a value":        {say: headOf(":status", "200", "x", " a"), err: http1.ErrAnswer, code: protocol},
	"connection":                  {say: headOf(":status", "200", "connection", "close"), err: http1.ErrAnswer, code: protocol},
	"transfer-encoding":           {say: headOf(":status", "200", "transfer-encoding", "chunked"), err: http1.ErrAnswer, code: protocol},
	"upgrade":                     {say: headOf(":status", "200", "upgrade", "x"), err: http1.ErrAnswer, code: protocol},
	"101":                         {say: func(r *raw, id uint32) { r.says(id, false, ":status", "101") }, err: http1.ErrAnswer, code: protocol},
	"an interim one ends it":      {say: headOf(":status", "100"), err: http1.ErrAnswer, code: protocol},
	"endless interim ones":        {say: repeated(maxInterim+1, func(r *raw, id uint32) { r.says(id, false, ":status", "102") }), err: http1.ErrAnswer, code: calm},
	"two lengths":                 {say: headOf(":status", "200", "content-length", "0", "content-length", "0"), err: http1.ErrAnswer, code: protocol},
	"a length with a sign":        {say: headOf(":status", "200", "content-length", "+0"), err: http1.ErrAnswer, code: protocol},
	"an empty length":             {say: headOf(":status", "200", "content-length", ""), err: http1.ErrAnswer, code: protocol},
	"a length and no body":        {say: headOf(":status", "200", "content-length", "1"), err: http1.ErrAnswer, code: protocol},
	"a head beyond its limit":     {say: tooLong, err: http1.ErrAnswer, code: protocol},
	"a block that is no HPACK":    {say: rawFrame(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), err: http1.ErrAnswer, dies: true, code: h2.ErrCodeCompression},
	"padding longer than HEADERS": {say: rawFrame(h2.FrameHeaders, h2.FlagHeadersEndHeaders|h2.FlagHeadersPadded, 9, 0x88), err: http1.ErrAnswer, dies: true, code: protocol},
	"HEADERS without its padding": {say: rawFrame(h2.FrameHeaders, h2.FlagHeadersEndHeaders|h2.FlagHeadersPadded), err: http1.ErrAnswer, dies: true, code: h2.ErrCodeFrameSize},
	"endless CONTINUATION":        {say: endlessly, err: http1.ErrAnswer, dies: true, code: calm},
	"CONTINUATION from nowhere":   {say: rawFrame(h2.FrameContinuation, h2.FlagHeadersEndHeaders, 0x88), err: http1.ErrAnswer, dies: true, code: protocol},
	"something between the pieces": {say: func(r *raw, id uint32) {
		_ = r.WriteRawFrame(h2.FrameHeaders, 0, id, nil)
		_ = r.WritePing(false, [8]byte{})
	}, err: http1.ErrAnswer, dies: true, code: protocol},
	"HEADERS on stream 0":          {say: func(r *raw, _ uint32) { r.says(0, true, ":status", "200") }, err: http1.ErrAnswer, dies: true, code: protocol},
	"HEADERS on a stream to come":  {say: func(r *raw, id uint32) { r.says(id+2, true, ":status", "200") }, err: http1.ErrAnswer, dies: true, code: protocol},
	"HEADERS on a server's stream": {say: func(r *raw, _ uint32) { r.says(2, true, ":status", "200") }, err: http1.ErrAnswer, dies: true, code: protocol},
}

func tooLong(r *raw, id uint32) {
	pairs := []string{":status", "200"}
	for range 20 {
		pairs = append(pairs, "x", strings.Repeat("a", 15<<10))
	}
	block := r.encode(pairs...)
	_ = r.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: block[:maxFrame], EndStream: true})
	for block = block[maxFrame:]; len(block) > maxFrame; block = block[maxFrame:] {
		_ = r.WriteContinuation(id, false, block[:maxFrame])
	}
	_ = r.WriteContinuation(id, true, block)
}

func endlessly(r *raw, id uint32) {
	_ = r.WriteHeaders(h2.HeadersFrameParam{StreamID: id})
	for range mostContinuations + 1 {
		if r.WriteContinuation(id, false, nil) != nil {
			return
		}
	}
}

// bodies are answers whose body, trailer or end decides.
var bodiesOfAnswers = map[string]said{
	"DATA before its head":        {say: func(r *raw, id uint32) { _ = r.WriteData(id, true, []byte("x")) }, err: http1.ErrAnswer, code: protocol},
	"more than its length":        {say: bodyOf("1", "ok"), err: http1.ErrAnswer, code: protocol},
	"less than its length":        {say: bodyOf("3", "ok"), err: http1.ErrAnswer},
	"a body to HEAD":              {say: bodyOf("", "ok"), head: true, err: http1.ErrAnswer, code: protocol},
	"a trailer":                   {say: fineBefore(func(r *raw, id uint32) { _ = r.WriteData(id, false, []byte("ok")); r.says(id, true, "x", "y") }), body: "ok"},
	"a trailer that does not end": {say: fineBefore(func(r *raw, id uint32) { r.says(id, false, "x", "y") }), err: http1.ErrAnswer, code: protocol},
	":status in a trailer":        {say: fineBefore(headOf(":status", "200")), err: http1.ErrAnswer, code: protocol},
	"upper case in a trailer":     {say: fineBefore(headOf("X", "y")), err: http1.ErrAnswer, code: protocol},
	"a length in a trailer":       {say: fineBefore(headOf("content-length", "0")), err: http1.ErrAnswer, code: protocol},
	"padding longer than DATA":    {say: fineBefore(rawFrame(h2.FrameData, h2.FlagDataPadded, 9, 'x')), err: http1.ErrAnswer, dies: true, code: protocol},
	"padded DATA":                 {say: fineBefore(rawFrame(h2.FrameData, h2.FlagDataPadded|h2.FlagDataEndStream, 1, 'x', 0)), body: "x"},
	"a frame too large":           {say: fineBefore(rawFrame(h2.FrameData, 0, make([]byte, maxFrame+1)...)), err: http1.ErrAnswer, dies: true, code: h2.ErrCodeFrameSize},
	"empty DATA without end":      {say: fineBefore(repeated(mostControl+200, func(r *raw, id uint32) { _ = r.WriteData(id, false, nil) })), err: http1.ErrAnswer, dies: true, code: calm},
	"DATA on stream 0":            {say: func(r *raw, _ uint32) { _ = r.WriteData(0, false, []byte("x")) }, err: http1.ErrAnswer, dies: true, code: protocol},
	"DATA on a stream to come":    {say: func(r *raw, id uint32) { _ = r.WriteData(id+2, false, []byte("x")) }, err: http1.ErrAnswer, dies: true, code: protocol},
	"reset, refused":              {say: func(r *raw, id uint32) { _ = r.WriteRSTStream(id, h2.ErrCodeRefusedStream) }, err: http1.ErrUnsent},
	"reset":                       {say: func(r *raw, id uint32) { _ = r.WriteRSTStream(id, h2.ErrCodeInternal) }, err: http1.ErrAnswer},
	"reset without error, early":  {say: fineBefore(func(r *raw, id uint32) { _ = r.WriteRSTStream(id, h2.ErrCodeNo) }), err: http1.ErrAnswer},
	"reset on a stream to come":   {say: func(r *raw, id uint32) { _ = r.WriteRSTStream(id+2, h2.ErrCodeNo) }, err: http1.ErrAnswer, dies: true, code: protocol},
	"the connection closes":       {say: func(r *raw, _ uint32) { r.Conn.Close() }, err: http1.ErrNoAnswer, dies: true},
	"it closes within a body":     {say: fineBefore(func(r *raw, _ uint32) { r.Conn.Close() }), err: http1.ErrAnswer, dies: true},
}

func tooMuch(r *raw, id uint32) {
	for sent := 0; sent <= clientStreamWindow; sent += maxFrame {
		_ = r.WriteData(id, false, make([]byte, maxFrame))
	}
}

// frames are what is wrong beside answers.
var framesOfUpstreams = map[string]said{
	"PUSH_PROMISE":                {say: rawFrame(h2.FramePushPromise, h2.FlagPushPromiseEndHeaders, 0, 0, 0, 2, 0x82), err: http1.ErrAnswer, dies: true, code: protocol},
	"a window beyond 2^31-1":      {say: func(r *raw, _ uint32) { _ = r.WriteWindowUpdate(0, maxWindow) }, err: http1.ErrAnswer, dies: true, code: h2.ErrCodeFlowControl},
	"a stream's beyond 2^31-1":    {say: func(r *raw, id uint32) { _ = r.WriteWindowUpdate(id, maxWindow) }, err: http1.ErrAnswer, code: h2.ErrCodeFlowControl},
	"a window of nothing":         {say: func(r *raw, _ uint32) { _ = r.WriteRawFrame(h2.FrameWindowUpdate, 0, 0, make([]byte, 4)) }, err: http1.ErrAnswer, dies: true, code: protocol},
	"a stream's of nothing":       {say: rawFrame(h2.FrameWindowUpdate, 0, 0, 0, 0, 0), err: http1.ErrAnswer, code: protocol},
	"an initial window too large": {say: func(r *raw, _ uint32) { _ = r.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 31}) }, err: http1.ErrAnswer, dies: true, code: h2.ErrCodeFlowControl},
	"push enabled":                {say: func(r *raw, _ uint32) { _ = r.WriteSettings(h2.Setting{ID: h2.SettingEnablePush, Val: 1}) }, err: http1.ErrAnswer, dies: true, code: protocol},
	"frames too small":            {say: func(r *raw, _ uint32) { _ = r.WriteSettings(h2.Setting{ID: h2.SettingMaxFrameSize, Val: 1}) }, err: http1.ErrAnswer, dies: true, code: protocol},
	"a flood of PING":             {say: repeated(mostControl+300, func(r *raw, _ uint32) { _ = r.WritePing(false, [8]byte{}) }), err: http1.ErrAnswer, dies: true, code: calm},
	"a flood of SETTINGS":         {say: repeated(mostControl+300, func(r *raw, _ uint32) { _ = r.WriteSettings() }), err: http1.ErrAnswer, dies: true, code: calm},
	"a flood within SETTINGS":     {say: repeated(2, func(r *raw, _ uint32) { _ = r.WriteSettings(manySettings...) }), err: http1.ErrAnswer, dies: true, code: calm},
	"a flood of unknown frames":   {say: repeated(mostControl+300, rawFrame(0xfa, 0)), err: http1.ErrAnswer, dies: true, code: calm},
	"GOAWAY behind us":            {say: func(r *raw, id uint32) { _ = r.WriteGoAway(0, h2.ErrCodeNo, nil) }, err: http1.ErrUnsent, dies: true},
	"GOAWAY, then an answer":      {say: func(r *raw, id uint32) { _ = r.WriteGoAway(id, h2.ErrCodeNo, nil); bodyOf("2", "ok")(r, id) }, body: "ok", dies: true},
	"GOAWAY taken back": {say: func(r *raw, id uint32) {
		_ = r.WriteGoAway(id, h2.ErrCodeNo, nil)
		_ = r.WriteGoAway(id+2, h2.ErrCodeNo, nil)
	}, err: http1.ErrAnswer, dies: true, code: protocol},
	"an HTTP/1.1 answer": {say: func(r *raw, _ uint32) { _ = r.write("HTTP/1.1 400 Bad Request\r\n\r\n") }, err: http1.ErrAnswer, dies: true, code: h2.ErrCodeFrameSize},
}

func TestClientAnswers(t *testing.T) {
	for _, corpus := range []map[string]said{heads, bodiesOfAnswers, framesOfUpstreams} {
		for name, one := range corpus {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				one.try(t)
			})
		}
	}
}

func (one said) try(t *testing.T) {
	heard := make(chan *outcome, 1)
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome()
		id := r.requested()
		one.say(r, id)
		switch {
		case one.dies:
			heard <- r.await(id, func(*outcome) bool { return false })
			return
		case one.code != h2.ErrCodeNo:
			heard <- r.await(id, func(o *outcome) bool { return o.wasReset })
		}
		if next := r.requested(); next != 0 {
			r.says(next, true, ":status", "204")
		}
		r.rest()
	}))
	method := "GET"
	if one.head {
		method = "HEAD"
	}
	_, body, err := c.ask(t, asking(wanted(method, "/")))
	if !errors.Is(err, one.err) || one.err == nil && body != one.body {
		t.Errorf("got %q, %v; want %q, %v", body, err, one.body, one.err)
	}
	if one.dies {
		c.dies(t)
		if o := <-heard; o.goAway != one.code {
			t.Errorf("the upstream was told %v, want %v", o.goAway, one.code)
		}
		if s := c.Stream(); s != nil {
			t.Error("a connection that has ended takes a request")
		}
		return
	}
	if one.code != h2.ErrCodeNo {
		if o := <-heard; o.reset != one.code {
			t.Errorf("the stream was reset with %v, want %v", o.reset, one.code)
		}
	}
	if status, _, err := c.ask(t, asking(wanted("GET", "/"))); status != 204 || err != nil {
		t.Errorf("the next request on the connection: %d, %v", status, err)
	}
	if n := c.Busy(); n != 0 {
		t.Errorf("%d requests are left", n)
	}
}

// What comes too late on a stream that we have reset is nothing wrong; on one that
// has ended it is.
func TestClientHearsWhatComesTooLate(t *testing.T) {
	for name, one := range map[string]struct {
		ended bool
		late  func(r *raw, id uint32)
		dies  bool
	}{
		"DATA on a stream that was reset":    {false, func(r *raw, id uint32) { _ = r.WriteData(id, true, []byte("x")) }, false},
		"HEADERS on a stream that was reset": {false, headOf(":status", "200", "x-table", "remembered"), false},
		"too much on one that was reset":     {false, func(r *raw, id uint32) { tooMuch(r, id); tooMuch(r, id) }, true},
		"DATA on one that has ended":         {true, func(r *raw, id uint32) { _ = r.WriteData(id, true, []byte("x")) }, true},
		"HEADERS on one that has ended":      {true, headOf(":status", "200"), true},
		"RST_STREAM on one that has ended":   {true, func(r *raw, id uint32) { _ = r.WriteRSTStream(id, h2.ErrCodeNo) }, false},
		"a window on one that has ended":     {true, func(r *raw, id uint32) { _ = r.WriteWindowUpdate(id, 1) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := connect(t, scriptedUpstream(t, func(r *raw) {
				r.welcome()
				id := r.requested()
				if one.ended {
					r.says(id, true, ":status", "204")
				} else {
					r.await(id, func(o *outcome) bool { return o.wasReset })
				}
				one.late(r, id)
				if next := r.requested(); next != 0 {
					r.says(next, true, ":status", "200", "x-table", "remembered")
				}
				r.rest()
			}))
			call := asking(wanted("GET", "/"))
			if !one.ended {
				call.Deadline = call.Now.Add(20 * time.Millisecond)
			}
			if _, _, err := c.ask(t, call); one.ended != (err == nil) {
				t.Fatal(err)
			}
			if one.dies {
				c.dies(t)
				return
			}
			s := c.Stream()
			resp, done, err := s.Do(asking(wanted("GET", "/")))
			if err != nil || resp.Header.Get("x-table") != "remembered" {
				t.Fatal(resp, err)
			}
			done(nil)
		})
	}
}

// Fields that say how to frame stay behind; others arrive in order.
func TestClientFieldsOfAnAnswer(t *testing.T) {
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome()
		id := r.requested()
		r.says(id, false, ":status", "200", "set-cookie", "a=1", "te", "x", "trailer", "z", "set-cookie", "b=2", "content-length", "0")
		r.says(id, true, "z", "1", "proxy-authenticate", "x")
		r.rest()
	}))
	resp, done, err := c.Stream().Do(asking(wanted("GET", "/")))
	if err != nil {
		t.Fatal(err)
	}
	defer done(nil)
	if n, err := resp.Body.Reader.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error(n, err)
	}
	trailer := resp.Body.Trailer()
	if got := slices.Collect(resp.Header.Values("set-cookie")); !slices.Equal(got, []string{"a=1", "b=2"}) || resp.Header.Len() != 2 || trailer.Len() != 1 || trailer.Get("z") != "1" {
		t.Error(resp.Header.Fields(), trailer.Fields())
	}
}
