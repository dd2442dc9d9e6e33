package h2

import (
	"errors"
	"testing"

	"golang.org/x/net/http2"

	"countersign.dev/proxy/internal/message"
)

func websocket() *message.Head {
	h := get("/chat")
	h.Upgrade = "websocket"
	return h
}

// TestExtendedConnect asks a server that takes it, one that does not, and one that has not said yet.
func TestExtendedConnect(t *testing.T) {
	for _, takes := range []bool{true, false} {
		p := newPair(t, Config{ExtendedConnect: takes})
		var seen *message.Head
		p.onServer = func(e *Event) {
			if e.Kind == Headers {
				h := *e.Head
				seen = &h
				e.Stream.Respond(&message.Head{Status: 200, ContentLength: message.Unknown}, false)
			}
		}
		ready := 0
		p.client.cfg.Ready = func() { ready++ } // before anything came: as if given to New
		if _, err := p.client.Open(websocket(), false, nil); !errors.Is(err, ErrNoSettings) {
			t.Errorf("before SETTINGS: %v", err)
		}
		if p.client.Ready() || p.client.ExtendedConnect() || p.client.Streams() != 0 {
			t.Error("something is known before SETTINGS")
		}
		p.move(1 << 20)
		if ready != 1 || !p.client.Ready() || p.client.ExtendedConnect() != takes {
			t.Fatalf("ready %d times, %t, extended CONNECT %t, want %t", ready, p.client.Ready(), p.client.ExtendedConnect(), takes)
		}
		s, err := p.client.Open(websocket(), false, nil)
		if !takes {
			if !errors.Is(err, ErrNoConnectProtocol) || p.client.Streams() != 0 {
				t.Errorf("a server without it: %v, %d streams", err, p.client.Streams())
			}
			if s, err = p.client.Open(get("/x"), true, nil); err != nil || s.ID() != 1 {
				t.Errorf("the refusal used up a stream: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		p.move(1 << 20)
		if seen == nil || seen.Method != "CONNECT" || seen.Upgrade != "websocket" || seen.Target != "/chat" || seen.Authority != "a.test" {
			t.Errorf("the server sees %+v", seen)
		}
		s.Write([]byte("x"), true)
		p.move(1 << 20)
		if p.server.Err() != nil || p.client.Err() != nil {
			t.Error(p.server.Err(), p.client.Err())
		}
	}
}

// TestConnectProtocolTakenBack is a server that changes its mind, which RFC 8441 section 3 forbids.
func TestConnectProtocolTakenBack(t *testing.T) {
	r := newRaw()
	r.out.Reset()
	_ = r.WriteSettings(http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
	_ = r.WriteSettings(http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 0})
	c := New(Config{Client: true, Intern: &message.Interner{}, Events: func(*Event) {}})
	wantCode(t, c.Feed(r.out.Bytes()), http2.ErrCodeProtocol)
}

func wantCode(t *testing.T, err error, code Code) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("%v, want %v", err, code)
	}
}
