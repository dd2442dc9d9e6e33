package relay

import (
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"countersign.dev/proxy/internal/message"
)

// keptBy is how many exchanges a worker keeps to be used again. All of them must be empty: what one caller
// said is not for the next one.
func keptBy(t *testing.T, r *rig) (n int) {
	t.Helper()
	empty := func(what string, x *Exchange) {
		for _, f := range x.head.Fields[:cap(x.head.Fields)] {
			if f != (message.Field{}) {
				t.Errorf("%s that is kept holds a field of its last request", what)
			}
		}
		rest := *x
		rest.head.Fields = nil
		if !reflect.DeepEqual(rest, Exchange{}) {
			t.Errorf("%s that is kept is not empty: %+v", what, rest)
		}
	}
	r.on(func() {
		s := &r.w.spares
		n = len(s.exchanges) + len(s.fronts)
		for _, x := range s.exchanges {
			empty("an exchange", x)
		}
		for _, f := range s.fronts {
			empty("an exchange of HTTP/2", &f.x)
			if f.s != nil || f.st != nil {
				t.Error("the end of an exchange that is kept has a connection")
			}
		}
		for _, b := range s.backs {
			if *b != (h2Back{}) {
				t.Error("the far end of an exchange that is kept is not empty")
			}
		}
	})
	return n
}

// TestUsedAgain sends ordinary requests, whose exchanges are used again, and others, whose are not.
func TestUsedAgain(t *testing.T) {
	app := application(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/cut":
			panic(http.ErrAbortHandler)
		case "/early":
			w.WriteHeader(http.StatusForbidden) // with the content unread
		default:
			fmt.Fprint(w, req.URL.Path, req.Header.Get("X-Secret"))
		}
	}))
	drivers(t, func(t *testing.T, portable bool) {
		for _, client2 := range []bool{false, true} {
			for _, app2 := range []bool{false, true} {
				t.Run(fmt.Sprintf("client2=%t/app2=%t", client2, app2), func(t *testing.T) {
					r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: app, HTTP2: app2})
					c := r.client(client2)
					ask := func(path, secret string) {
						t.Helper()
						req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.addr.String()+path, nil)
						if err != nil {
							t.Fatal(err)
						}
						if secret != "" {
							req.Header.Set("X-Secret", secret)
						}
						status, body, err := read(c.Do(req))
						if err != nil || status != http.StatusOK || body != path+secret {
							t.Fatalf("%s: %d %q, %v", path, status, body, err)
						}
					}
					ask("/first", "one") // waits for the connection: others may know of it still
					for i := range 5 {
						ask(fmt.Sprintf("/%d", i), strings.Repeat("s", i))
					}
					eventually(t, "an exchange is kept", func() bool { ask("/more", ""); return keptBy(t, r) > 0 })

					before := keptBy(t, r)
					for range 5 {
						_, _, _ = r.send(c, http.MethodGet, "/cut", nil)
						_, _, _ = r.send(c, http.MethodPost, "/early", strings.NewReader(strings.Repeat("x", 4<<20)))
					}
					ask("/first-after", "") // may wait for a connection
					ask("/after", "")
					ask("/after", "")
					if after := keptBy(t, r); after > before+3 {
						t.Errorf("%d exchanges are kept after failures, and %d before", after, before)
					}
				})
			}
		}
	})
}

// TestKeepsNotTooMany lets more exchanges end at once than are kept.
func TestKeepsNotTooMany(t *testing.T) {
	s := &spares{}
	for range 3 * maxSpare {
		s.spent = append(s.spent, &Exchange{
			back: released{}, front: &h1Server{}, head: message.Head{Fields: []message.Field{{Name: "authorization", Value: "secret"}}},
		})
	}
	s.look()
	if len(s.exchanges) != 0 {
		t.Error("an exchange did not rest")
	}
	for _, x := range s.resting {
		if f := x.head.Fields[:1][0]; f != (message.Field{}) {
			t.Fatalf("an exchange that rests has the field %v of its request", f)
		}
	}
	s.look()
	if len(s.exchanges) != maxSpare {
		t.Errorf("%d exchanges are kept, want %d", len(s.exchanges), maxSpare)
	}
	known := &h1Server{}
	known.x = &Exchange{back: released{}, front: known}
	s = &spares{resting: []*Exchange{known.x, {back: nil, front: &h1Server{}}}}
	s.look()
	if len(s.exchanges) != 0 {
		t.Error("an exchange is used again that its connection still knows, or whose end is not known")
	}
}

// read reads an answer whole.
func read(res *http.Response, err error) (int, string, error) {
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}
