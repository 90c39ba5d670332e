package http2

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// slow answers only when the test ends.
func slow(t *testing.T) Config {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	return Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		select {
		case <-release:
		case <-e.Context.Done():
		}
		return text(200, "late")
	}}
}

// Every row breaks a rule about frames and is answered with GOAWAY and the end of
// the connection. Sections are of RFC 9113.
func TestConnectionErrors(t *testing.T) {
	f := start(t, slow(t))
	u32 := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	open := func(r *raw) { r.headers(1, false, post()...) }
	for name, c := range map[string]struct {
		send func(r *raw)
		want h2.ErrCode
	}{
		"4.2 frame beyond SETTINGS_MAX_FRAME_SIZE": {func(r *raw) { open(r); r.WriteData(1, false, make([]byte, maxFrame+1)) }, h2.ErrCodeFrameSize},
		"4.2 SETTINGS beyond it":                   {func(r *raw) { r.WriteRawFrame(h2.FrameSettings, 0, 0, make([]byte, 6*3000)) }, h2.ErrCodeFrameSize},
		"4.3 block that does not decode":           {func(r *raw) { r.WriteRawFrame(h2.FrameHeaders, 5, 1, []byte{0xff, 0xff, 0xff, 0xff, 0xff}) }, h2.ErrCodeCompression},
		"4.3 index beyond the tables":              {func(r *raw) { r.WriteRawFrame(h2.FrameHeaders, 5, 1, []byte{0x80 | 100}) }, h2.ErrCodeCompression},
		"4.3 index zero":                           {func(r *raw) { r.WriteRawFrame(h2.FrameHeaders, 5, 1, []byte{0x80}) }, h2.ErrCodeCompression},
		"4.3 table beyond what was offered":        {func(r *raw) { r.WriteRawFrame(h2.FrameHeaders, 5, 1, []byte{0x3f, 0xe1, 0xff, 0x03}) }, h2.ErrCodeCompression},
		"4.3 PRIORITY amid a header block": {func(r *raw) {
			r.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: r.encode(get()...)})
			r.WritePriority(1, h2.PriorityParam{Weight: 1})
		}, h2.ErrCodeProtocol},
		"4.3 another stream's HEADERS amid one": {func(r *raw) {
			r.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: r.encode(get()...)})
			r.headers(3, true, get()...)
		}, h2.ErrCodeProtocol},
		"4.3 unknown frame amid one": {func(r *raw) {
			r.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: r.encode(get()...)})
			r.WriteRawFrame(0xfe, 0, 1, nil)
		}, h2.ErrCodeProtocol},
		"5.1 DATA on an idle stream":                {func(r *raw) { r.WriteData(1, true, nil) }, h2.ErrCodeProtocol},
		"5.1 RST_STREAM on an idle stream":          {func(r *raw) { r.WriteRSTStream(1, h2.ErrCodeCancel) }, h2.ErrCodeProtocol},
		"5.1 WINDOW_UPDATE on an idle stream":       {func(r *raw) { r.WriteWindowUpdate(1, 1) }, h2.ErrCodeProtocol},
		"5.1 CONTINUATION on an idle stream":        {func(r *raw) { r.WriteContinuation(1, true, r.encode(get()...)) }, h2.ErrCodeProtocol},
		"5.1 HEADERS after RST_STREAM":              {func(r *raw) { open(r); r.WriteRSTStream(1, h2.ErrCodeCancel); open(r) }, h2.ErrCodeStreamClosed},
		"5.1.1 even stream":                         {func(r *raw) { r.headers(2, true, get()...) }, h2.ErrCodeProtocol},
		"5.1.1 lower stream":                        {func(r *raw) { r.headers(5, true, get()...); r.headers(3, true, get()...) }, h2.ErrCodeProtocol},
		"6.1 DATA on stream 0":                      {func(r *raw) { r.WriteRawFrame(h2.FrameData, 0, 0, []byte("x")) }, h2.ErrCodeProtocol},
		"6.1 padding longer than the frame":         {func(r *raw) { open(r); r.WriteRawFrame(h2.FrameData, h2.FlagDataPadded, 1, []byte{9, 1}) }, h2.ErrCodeProtocol},
		"6.1 padded without a length":               {func(r *raw) { open(r); r.WriteRawFrame(h2.FrameData, h2.FlagDataPadded, 1, nil) }, h2.ErrCodeProtocol},
		"6.2 HEADERS on stream 0":                   {func(r *raw) { r.WriteRawFrame(h2.FrameHeaders, 5, 0, r.encode(get()...)) }, h2.ErrCodeProtocol},
		"6.2 padding longer than the block":         {func(r *raw) { r.WriteRawFrame(h2.FrameHeaders, 5|h2.FlagHeadersPadded, 1, []byte{200, 0x82}) }, h2.ErrCodeProtocol},
		"6.3 PRIORITY on stream 0":                  {func(r *raw) { r.WriteRawFrame(h2.FramePriority, 0, 0, make([]byte, 5)) }, h2.ErrCodeProtocol},
		"6.4 RST_STREAM on stream 0":                {func(r *raw) { r.WriteRawFrame(h2.FrameRSTStream, 0, 0, make([]byte, 4)) }, h2.ErrCodeProtocol},
		"6.4 RST_STREAM of another size":            {func(r *raw) { open(r); r.WriteRawFrame(h2.FrameRSTStream, 0, 1, make([]byte, 3)) }, h2.ErrCodeFrameSize},
		"6.5 SETTINGS on a stream":                  {func(r *raw) { r.WriteRawFrame(h2.FrameSettings, 0, 1, nil) }, h2.ErrCodeProtocol},
		"6.5 SETTINGS of a size not divisible by 6": {func(r *raw) { r.WriteRawFrame(h2.FrameSettings, 0, 0, make([]byte, 5)) }, h2.ErrCodeFrameSize},
		"6.5 acknowledgement with a payload":        {func(r *raw) { r.WriteRawFrame(h2.FrameSettings, h2.FlagSettingsAck, 0, make([]byte, 6)) }, h2.ErrCodeFrameSize},
		"6.5.2 ENABLE_PUSH of 2":                    {func(r *raw) { r.WriteSettings(h2.Setting{ID: h2.SettingEnablePush, Val: 2}) }, h2.ErrCodeProtocol},
		"6.5.2 INITIAL_WINDOW_SIZE beyond 2^31-1":   {func(r *raw) { r.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 31}) }, h2.ErrCodeFlowControl},
		"6.5.2 MAX_FRAME_SIZE below 2^14":           {func(r *raw) { r.WriteSettings(h2.Setting{ID: h2.SettingMaxFrameSize, Val: 1<<14 - 1}) }, h2.ErrCodeProtocol},
		"6.5.2 MAX_FRAME_SIZE beyond 2^24-1":        {func(r *raw) { r.WriteSettings(h2.Setting{ID: h2.SettingMaxFrameSize, Val: 1 << 24}) }, h2.ErrCodeProtocol},
		"6.6 PUSH_PROMISE": {func(r *raw) {
			open(r)
			r.WriteRawFrame(h2.FramePushPromise, 4, 1, append(u32(2), r.encode(get()...)...))
		}, h2.ErrCodeProtocol},
		"6.7 PING on a stream":                     {func(r *raw) { r.WriteRawFrame(h2.FramePing, 0, 1, make([]byte, 8)) }, h2.ErrCodeProtocol},
		"6.7 PING of another size":                 {func(r *raw) { r.WriteRawFrame(h2.FramePing, 0, 0, make([]byte, 6)) }, h2.ErrCodeFrameSize},
		"6.8 GOAWAY on a stream":                   {func(r *raw) { r.WriteRawFrame(h2.FrameGoAway, 0, 1, make([]byte, 8)) }, h2.ErrCodeProtocol},
		"6.9 WINDOW_UPDATE of 0 on the connection": {func(r *raw) { r.WriteRawFrame(h2.FrameWindowUpdate, 0, 0, u32(0)) }, h2.ErrCodeProtocol},
		"6.9 WINDOW_UPDATE of another size":        {func(r *raw) { r.WriteRawFrame(h2.FrameWindowUpdate, 0, 0, make([]byte, 3)) }, h2.ErrCodeFrameSize},
		"6.9.1 connection's window beyond 2^31-1":  {func(r *raw) { r.WriteWindowUpdate(0, 1<<31-1) }, h2.ErrCodeFlowControl},
		"6.9.1 more than the connection's window":  {flood, h2.ErrCodeFlowControl},
		"6.9.2 stream's window beyond, by SETTINGS": {func(r *raw) {
			open(r)
			r.WriteWindowUpdate(1, 1<<31-65536)
			r.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 20})
		}, h2.ErrCodeFlowControl},
		"6.10 CONTINUATION behind a whole block": {func(r *raw) { open(r); r.WriteContinuation(1, true, nil) }, h2.ErrCodeProtocol},
		"6.10 CONTINUATION on stream 0": {func(r *raw) {
			r.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: r.encode(get()...)})
			r.WriteContinuation(0, true, nil)
		}, h2.ErrCodeProtocol},
		"6.10 CONTINUATION on another stream": {func(r *raw) {
			r.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: r.encode(get()...)})
			r.WriteContinuation(3, true, nil)
		}, h2.ErrCodeProtocol},
		"HPACK 4.2 size update behind a field": {func(r *raw) {
			r.encode(get("x-a", "b")...)
			r.headers(1, true, get("x-a", "b")...)
			r.WriteRawFrame(h2.FrameHeaders, 5, 3, []byte{0x82, 0x20})
		}, h2.ErrCodeCompression},
		"HPACK 5.2 padding that is not EOS": {func(r *raw) {
			r.WriteRawFrame(h2.FrameHeaders, 5, 1, []byte{0x00, 0x85, 0xf2, 0xb2, 0x4a, 0x84, 0x00, 0x85, 0xf2, 0xb2, 0x4a, 0x84, 0x00})
		}, h2.ErrCodeCompression},
		"HPACK: a literal cut short": {func(r *raw) { r.WriteRawFrame(h2.FrameHeaders, 5, 1, []byte{0x82, 0x40, 0x05, 'a'}) }, h2.ErrCodeCompression},
	} {
		t.Run(name, func(t *testing.T) {
			r := f.dial()
			c.send(r)
			o := r.await(1, func(*outcome) bool { return false })
			if !o.gone || o.goAway != c.want {
				t.Errorf("got %+v, want GOAWAY with %v", o, c.want)
			}
		})
	}
}

// flood sends more than the connection's window on streams that nobody reads.
func flood(r *raw) {
	for id := uint32(1); id < 13; id += 2 {
		r.headers(id, false, post()...)
		for range streamWindow / maxFrame {
			r.WriteData(id, false, make([]byte, maxFrame))
		}
	}
}

func TestConnectionsThatDoNotBeginAsTheyMust(t *testing.T) {
	f := start(t, Config{})
	for name, send := range map[string]string{
		"3.4 no preface":             strings.Repeat("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 2),
		"3.4 no SETTINGS":            Preface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
		"3.4 an acknowledgement":     Preface + "\x00\x00\x00\x04\x01\x00\x00\x00\x00",
		"3.4 a preface spelt wrong ": strings.Replace(Preface, "SM", "XX", 1),
	} {
		t.Run(name, func(t *testing.T) {
			r := f.dialSilent()
			r.must(r.write(send))
			if o := r.await(0, func(*outcome) bool { return false }); o.goAway != h2.ErrCodeProtocol {
				t.Errorf("got %+v", o)
			}
		})
	}
}

// Every row breaks a rule about one stream, which is reset; the connection lives.
func TestStreamErrors(t *testing.T) {
	f := start(t, slow(t))
	for name, c := range map[string]struct {
		send func(r *raw)
		want h2.ErrCode
	}{
		"5.1 DATA after END_STREAM":    {func(r *raw) { r.headers(1, true, get()...); r.WriteData(1, true, nil) }, h2.ErrCodeStreamClosed},
		"5.1 HEADERS after END_STREAM": {func(r *raw) { r.headers(1, true, get()...); r.headers(1, true, "x-a", "b") }, h2.ErrCodeStreamClosed},
		"5.1 DATA after RST_STREAM":    {func(r *raw) { r.headers(1, false, post()...); r.WriteRSTStream(1, 8); r.WriteData(1, true, nil) }, h2.ErrCodeStreamClosed},
		"6.9 WINDOW_UPDATE of 0": {func(r *raw) {
			r.headers(1, false, post()...)
			r.WriteRawFrame(h2.FrameWindowUpdate, 0, 1, make([]byte, 4))
		}, h2.ErrCodeProtocol},
		"6.9.1 window beyond 2^31-1":       {func(r *raw) { r.headers(1, false, post()...); r.WriteWindowUpdate(1, 1<<31-1) }, h2.ErrCodeFlowControl},
		"6.9.1 more than the window":       {func(r *raw) { r.headers(1, false, post()...); overflow(r) }, h2.ErrCodeFlowControl},
		"8.1 second HEADERS does not end":  {func(r *raw) { r.headers(1, false, post()...); r.headers(1, false, "x-a", "b") }, h2.ErrCodeProtocol},
		"8.1 pseudo-header in the trailer": {func(r *raw) { r.headers(1, false, post()...); r.headers(1, true, ":path", "/") }, h2.ErrCodeProtocol},
		"8.2 upper case in the trailer":    {func(r *raw) { r.headers(1, false, post()...); r.headers(1, true, "X-A", "b") }, h2.ErrCodeProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			r := f.dial()
			c.send(r)
			if o := r.receive(1); !o.wasReset || o.reset != c.want {
				t.Errorf("got %+v, want RST_STREAM with %v", o, c.want)
			}
			r.alive()
		})
	}
}

func overflow(r *raw) {
	for range streamWindow/maxFrame + 1 {
		r.WriteData(1, false, make([]byte, maxFrame))
	}
}

// Every row is a message that could be understood in two ways, or in none: it is
// refused, the handler does not see it, and the connection lives.
func TestMalformedRequestsAreRefused(t *testing.T) {
	f := start(t, Config{})
	without := func(name string, more ...string) (pairs []string) {
		for i, head := 0, get(); i < len(head); i += 2 {
			if head[i] != name {
				pairs = append(pairs, head[i], head[i+1])
			}
		}
		return append(pairs, more...)
	}
	for name, c := range map[string]struct {
		head   []string
		status string
	}{
		"upper case in a name":       {get("X-A", "b"), "400"},
		"empty name":                 {get("", "b"), "400"},
		"blank in a name":            {get("x a", "b"), "400"},
		"colon in a name":            {get("x:a", "b"), "400"},
		"high byte in a name":        {get("x\xe9", "b"), "400"},
		"CR in a value":              {get("x-a", "b\rc"), "400"},
		"LF in a value":              {get("x-a", "b\nx-b: c"), "400"},
		"NUL in a value":             {get("x-a", "b\x00c"), "400"},
		"DEL in a value":             {get("x-a", "b\x7f"), "400"},
		"blank before a value":       {get("x-a", " b"), "400"},
		"tab behind a value":         {get("x-a", "b\t"), "400"},
		"connection":                 {get("connection", "close"), "400"},
		"keep-alive":                 {get("keep-alive", "1"), "400"},
		"proxy-connection":           {get("proxy-connection", "close"), "400"},
		"transfer-encoding":          {get("transfer-encoding", "chunked"), "400"},
		"upgrade":                    {get("upgrade", "h2c"), "400"},
		"te other than trailers":     {get("te", "trailers, gzip"), "400"},
		"unknown pseudo-header":      {get(":user", "x"), "400"},
		"pseudo-header of an answer": {get(":status", "200"), "400"},
		"extended CONNECT":           {append([]string{":protocol", "websocket"}, get()...), "400"},
		"pseudo behind a field":      {append(without(":path", "x-a", "b"), ":path", "/"), "400"},
		"two methods":                {get(":method", "POST"), "400"},
		"two paths":                  {get(":path", "/b"), "400"},
		"two schemes":                {get(":scheme", "https"), "400"},
		"two authorities":            {get(":authority", "b.example"), "400"},
		"no method":                  {without(":method"), "400"},
		"no scheme":                  {without(":scheme"), "400"},
		"no path":                    {without(":path"), "400"},
		"empty path":                 {without(":path", ":path", ""), "400"},
		"no authority":               {without(":authority"), "400"},
		"empty authority":            {without(":authority", ":authority", ""), "400"},
		"host of another name":       {get("host", "b.example"), "400"},
		"host of another port":       {get("host", "a.example:81"), "400"},
		"two hosts":                  {get("host", "a.example", "host", "a.example"), "400"},
		"user in the authority":      {without(":authority", ":authority", "u@a.example"), "400"},
		"path in the authority":      {without(":authority", ":authority", "a.example/x"), "400"},
		"Kelvin in the authority":    {without(":authority", ":authority", "\u212aelvin"), "400"},
		"method in lower case":       {without(":method", ":method", "get"), "400"},
		"blank in the method":        {without(":method", ":method", "GET /x"), "400"},
		"CONNECT":                    {[]string{":method", "CONNECT", ":authority", "a.example:443"}, "400"},
		"CONNECT with a path":        {without(":method", ":method", "CONNECT"), "400"},
		"TRACE":                      {without(":method", ":method", "TRACE"), "501"},
		"path without slash":         {without(":path", ":path", "svc/Method"), "400"},
		"asterisk with GET":          {without(":path", ":path", "*"), "400"},
		"absolute form":              {without(":path", ":path", "http://a.example/"), "400"},
		"fragment":                   {without(":path", ":path", "/a#b"), "400"},
		"blank in the path":          {without(":path", ":path", "/a b"), "400"},
		"dot segments beyond root":   {without(":path", ":path", "/../a\x80"), "400"},
		"scheme is no HTTP":          {without(":scheme", ":scheme", "ftp"), "400"},
		"length without a body":      {get("content-length", "5"), "400"},
		"two lengths":                {get("content-length", "0", "content-length", "0"), "400"},
		"signed length":              {get("content-length", "+0"), "400"},
		"list of lengths":            {get("content-length", "0, 0"), "400"},
		"empty length":               {get("content-length", ""), "400"},
		"unknown expectation":        {get("expect", "the-unexpected"), "417"},
		"a head beyond the limit":    {get("x-a", strings.Repeat("b", 70_000)), "431"},
		"too many fields":            {get(strings.Split(strings.Repeat("x-a,b,", 201), ",")[:402]...), "431"},
	} {
		t.Run(name, func(t *testing.T) {
			r := f.dial()
			block := r.encode(c.head...)
			first := block[:min(len(block), maxFrame)]
			r.must(r.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndStream: true, EndHeaders: len(first) == len(block)}))
			for block = block[len(first):]; len(block) > 0; {
				n := min(len(block), maxFrame)
				r.must(r.WriteContinuation(1, n == len(block), block[:n]))
				block = block[n:]
			}
			o := r.receive(1)
			if o.status != c.status || !strings.HasPrefix(o.body, "request_") {
				t.Errorf("got %+v, want %s", o, c.status)
			}
			if seen := f.reached(); len(seen) > 0 {
				t.Errorf("the handler saw %v", seen)
			}
			// The decoder's state has survived.
			r.headers(3, true, get("x-a", "fine")...)
			if o := r.receive(3); o.status != "200" || !strings.Contains(o.body, "x-a: fine") {
				t.Errorf("the next request got %+v", o)
			}
			f.reached()
		})
	}
}

func TestUnusualRequestsAreServed(t *testing.T) {
	f := start(t, Config{})
	for name, c := range map[string]struct {
		head []string
		want string
	}{
		"host in place of :authority": {[]string{":method", "GET", ":scheme", "http", ":path", "/", "host", "A.example:8080"}, "host=a.example authority=a.example:8080"},
		"host beside :authority":      {get("host", "A.EXAMPLE"), "host=a.example authority=a.example"},
		"asterisk with OPTIONS":       {[]string{":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "a.example"}, "OPTIONS *?"},
		"crumbs of cookies":           {get("cookie", "a=b", "x-a", "b", "cookie", "c=d", "cookie", "e=f"), "cookie: a=b; c=d; e=f\n"},
		"te: trailers":                {get("te", "trailers"), "GET /?"},
		"scheme in upper case":        {[]string{":method", "GET", ":scheme", "HTTPS", ":path", "/", ":authority", "a.example"}, "GET /?"},
		"a path in need of cleaning":  {[]string{":method", "GET", ":scheme", "http", ":path", "/a%41?q=/../x", ":authority", "a.example"}, "GET /aA?q=/../x"},
		"10,000 crumbs":               {get(strings.Split(strings.Repeat("cookie,a,", 1500), ",")[:3000]...), "a; a; a"},
		"no value":                    {get("x-a", ""), "x-a: \n"},
	} {
		t.Run(name, func(t *testing.T) {
			r := f.dial()
			r.headers(1, true, c.head...)
			if o := r.receive(1); o.status != "200" || !strings.Contains(o.body, c.want) {
				t.Errorf("got %+v, want %q", o, c.want)
			}
		})
	}
}

// The length that is said must be the length that comes (8.1.1).
func TestContentLengthIsHeldAgainstTheData(t *testing.T) {
	f := start(t, Config{})
	for name, c := range map[string]struct {
		said string
		send []string
		want string
	}{
		"equal":   {"5", []string{"hel", "lo"}, "200"},
		"shorter": {"6", []string{"hel", "lo"}, "400"},
		"longer":  {"4", []string{"hel", "lo"}, "400"},
		"none":    {"0", []string{""}, "200"},
	} {
		t.Run(name, func(t *testing.T) {
			r := f.dial()
			r.headers(1, false, post("content-length", c.said)...)
			for i, s := range c.send {
				r.must(r.WriteData(1, i == len(c.send)-1, []byte(s)))
			}
			if o := r.receive(1); o.status != c.want {
				t.Errorf("got %+v, want %s", o, c.want)
			}
			r.alive()
		})
	}
}

func TestBodiesBeyondTheirLimit(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if resp := echo(e); resp.Status != 200 {
			return text(413, "too large")
		}
		return text(200, "all of it")
	}})
	r := f.dial()
	r.headers(1, false, post("content-length", "999999999")...)
	if o := r.receive(1); o.status != "413" {
		t.Errorf("said to be too large: %+v", o)
	}
	resp, err := f.client().Post("http://"+f.addr+"/", "", endless{})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 413 {
		t.Error("found to be too large:", resp.Status)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestHundredContinue(t *testing.T) {
	f := start(t, Config{})
	r := f.dial()
	r.headers(1, false, post("expect", "100-continue")...)
	if o := r.await(1, func(o *outcome) bool { return o.status != "" }); o.status != "100" {
		t.Fatalf("got %+v", o)
	}
	r.must(r.WriteData(1, true, []byte("body")))
	if o := r.receive(1); o.status != "200" || !strings.Contains(o.body, "body=body") {
		t.Errorf("got %+v", o)
	}
}

func TestASmallerTableIsAcknowledgedInTheNextBlock(t *testing.T) {
	f := start(t, Config{})
	r := f.dial()
	r.must(r.WriteSettings(h2.Setting{ID: h2.SettingHeaderTableSize, Val: 0}))
	r.headers(1, true, get()...)
	for {
		frame, err := r.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := frame.(*h2.HeadersFrame); ok {
			if first := f.HeaderBlockFragment()[0]; first != tableSizeZero {
				t.Errorf("the block begins with %#02x", first)
			}
			return
		}
	}
}

func TestSilentClientsAreTimedOut(t *testing.T) {
	f := start(t, Config{HeaderTimeout: 50 * time.Millisecond, IdleTimeout: 150 * time.Millisecond})
	for name, c := range map[string]struct {
		send func(r *raw)
		want h2.ErrCode
	}{
		"no preface":     {func(r *raw) {}, h2.ErrCodeEnhanceYourCalm},
		"half a preface": {func(r *raw) { r.write(Preface[:10]) }, h2.ErrCodeEnhanceYourCalm},
		"no SETTINGS":    {func(r *raw) { r.write(Preface) }, h2.ErrCodeEnhanceYourCalm},
		"half a frame":   {func(r *raw) { r.write(Preface); r.WriteSettings(); r.write("\x00\x00\x08\x06\x00\x00\x00\x00\x001234") }, h2.ErrCodeEnhanceYourCalm},
		"half a block": {func(r *raw) {
			r.write(Preface)
			r.WriteSettings()
			r.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: r.encode(get()...)})
		}, h2.ErrCodeEnhanceYourCalm},
		"no request":         {func(r *raw) { r.write(Preface); r.WriteSettings() }, h2.ErrCodeNo},
		"no further request": {func(r *raw) { r.write(Preface); r.WriteSettings(); r.headers(1, true, get()...) }, h2.ErrCodeNo},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := f.dialSilent()
			c.send(r)
			if o := r.await(1, func(*outcome) bool { return false }); !o.gone || o.goAway != c.want {
				t.Errorf("got %+v, want GOAWAY with %v", o, c.want)
			}
		})
	}
}
