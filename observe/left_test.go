package observe

import (
	"io"
	"net"
	"testing"

	"golang.org/x/net/http2"

	"countersign.dev/mesh"
)

// A server that is about to go away has refused nobody: it is asked again. One that always goes away is not waited for.
func TestServerLeaves(t *testing.T) {
	leaves := frames(t, func(f *http2.Framer) { _ = f.WriteSettings(); _ = f.WriteGoAway(0, http2.ErrCodeNo, nil) })
	denies := frames(t, func(f *http2.Framer) {
		_ = f.WriteSettings()
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":status", "403"), EndHeaders: true, EndStream: true})
	})
	refuses := frames(t, func(f *http2.Framer) {
		_ = f.WriteSettings()
		_ = f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, nil)
	})
	for _, tt := range []struct {
		name    string
		answers [][]byte // the last to all that come after, too
		want    outcome
		asked   int
	}{
		{"once", [][]byte{leaves, denies}, outcome{ending: answered, how: "answered HTTP 403", denied: true}, 2},
		{"always", [][]byte{leaves}, outcome{ending: refused, how: "HTTP/2 GOAWAY: NO_ERROR", left: true}, maxLeft},
		{"because of the client", [][]byte{refuses, denies}, outcome{ending: refused, how: "HTTP/2 GOAWAY: ENHANCE_YOUR_CALM"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			asked, ended := 0, make(chan struct{})
			go func() {
				defer close(ended)
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Write(tt.answers[min(asked, len(tt.answers)-1)])
					asked++
					_, _ = io.Copy(io.Discard, conn) // a close before all is read would be a reset
					_ = conn.Close()
				}
			}()
			ca := newTestCA(t)
			got := ca.observer(func(*Config) {}).dialPlain(t.Context(), new(target(t, mesh.HTTP2, listener.Addr().String(), ca.good(mesh.HTTP2))), 0)
			_ = listener.Close()
			<-ended
			if got != tt.want || asked != tt.asked {
				t.Errorf("%+v after %d connections, want %+v after %d", got, asked, tt.want, tt.asked)
			}
		})
	}
}
