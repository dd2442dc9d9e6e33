package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// forged is what a caller that lies writes; it must not be seen by any application.
const forged = "CN=forged"

// forgeries are requests in HTTP/1.1 that try to pass a forged identity. Where a sidecar takes one for
// an attack it may refuse it with 400.
var forgeries = map[string]struct {
	head, body string
	refusable  bool
}{
	"as it is":           {head: "X-Client-Cert: %s\r\nX-Forwarded-Client-Cert: By=x;URI=%s\r\n"},
	"in lower case":      {head: "x-client-cert: %s\r\nx-forwarded-client-cert: %s\r\n"},
	"in odd case":        {head: "X-cLiEnT-CeRt: %s\r\nX-FORWARDED-CLIENT-CERT: %s\r\n"},
	"twice":              {head: "X-Client-Cert: a\r\nX-Client-Cert: %s\r\nX-Forwarded-Client-Cert: a\r\nX-Forwarded-Client-Cert: %s\r\n"},
	"with underscores":   {head: "X_Client_Cert: %s\r\nX_Forwarded_Client_Cert: %s\r\n", refusable: true},
	"with one of each":   {head: "X-Client_Cert: %s\r\nX-Forwarded_Client-Cert: %s\r\n", refusable: true},
	"lower, underscores": {head: "x_client_cert: %s\r\nx_forwarded_client-cert: %s\r\n", refusable: true},
	"space before colon": {head: "X-Client-Cert : %s\r\nX-Forwarded-Client-Cert\t: %s\r\n", refusable: true},
	"folded":             {head: "X-Other: a\r\n X-Client-Cert: %s\r\n\tX-Forwarded-Client-Cert: %s\r\n", refusable: true},
	"bare line feed":     {head: "X-Other: a\nX-Client-Cert: %s\nX-Forwarded-Client-Cert: %s\r\n", refusable: true},
	"bare return":        {head: "X-Other: a\rX-Client-Cert: %s\rX-Forwarded-Client-Cert: %s\r\n", refusable: true},
	"named in Connection": {
		head: "Connection: close, X-Client-Cert, x-forwarded-client-cert, X-Forwarded-For\r\nX-Client-Cert: %s\r\nX-Forwarded-Client-Cert: %s\r\n",
	},
	"in a trailer": {
		head: "Transfer-Encoding: chunked\r\nTrailer: X-Client-Cert, X-Forwarded-Client-Cert\r\n",
		body: "3\r\nabc\r\n0\r\nX-Client-Cert: %s\r\nX-Forwarded-Client-Cert: %s\r\n\r\n", refusable: true,
	},
	"in a trailer, unannounced, with underscores": {
		head: "Transfer-Encoding: chunked\r\n",
		body: "3\r\nabc\r\n0\r\nx_client_cert: %s\r\nX_Forwarded-Client-Cert: %s\r\n\r\n", refusable: true,
	},
}

// No spelling of a forged identity reaches an application, and the true one does: that of the workload
// that calls, or none when nobody proved anything.
func TestForgedHeaders(t *testing.T) {
	mesh := lab(t)
	paths := []struct {
		name, address string
		caller        string // empty: anonymous
	}{
		{"a sidecar", mesh.outbound(t, "caller", "recorder", 9080), "service/caller"},
		{"the gateway", mesh.inbound(t, "edge", 8080), "gateway/edge"},
		{"a sidecar, to a permissive port", mesh.outbound(t, "caller", "recorder", 9081), "service/caller"},
		{"plaintext", mesh.inbound(t, "recorder", 9081), ""},
	}
	for _, path := range paths {
		for name, forgery := range forgeries {
			t.Run(path.name+"/"+name, func(t *testing.T) {
				method := "GET"
				if forgery.body != "" {
					method = "POST"
				}
				request := fmt.Sprintf("%s /forged HTTP/1.1\r\nHost: x\r\n", method) + strings.ReplaceAll(forgery.head, "%s", forged) +
					"X-Honest: yes\r\n\r\n" + strings.ReplaceAll(forgery.body, "%s", forged)
				conn := dialTCP(t, path.address)
				if _, err := io.WriteString(conn, request); err != nil {
					t.Fatal(err)
				}
				response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
				if err != nil {
					if forgery.refusable {
						return // closed without a word
					}
					t.Fatal(err)
				}
				defer response.Body.Close()
				body, err := io.ReadAll(response.Body)
				if err != nil {
					t.Fatal(err)
				}
				if response.StatusCode == http.StatusBadRequest && forgery.refusable {
					return
				}
				if response.StatusCode != http.StatusOK {
					t.Fatalf("status %d: %s", response.StatusCode, body)
				}
				honest(t, parseSeen(t, string(body)), path.caller)
			})
		}
	}
}

var hash = regexp.MustCompile(`(^|;)Hash=[0-9a-f]{64}(;|$)`)

// honest checks what an application saw of its caller.
func honest(t *testing.T, saw seen, caller string) {
	t.Helper()
	text, err := json.Marshal(saw)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), forged) {
		t.Errorf("the forged identity reached the application: %s", text)
	}
	if saw.Headers.Get("X-Honest") != "yes" {
		t.Errorf("the application did not see this request: %s", text)
	}
	subjects, forwarded := saw.Headers["X-Client-Cert"], saw.Headers["X-Forwarded-Client-Cert"]
	if caller == "" {
		if len(subjects)+len(forwarded) > 0 {
			t.Errorf("an anonymous caller is given as %q, %q", subjects, forwarded)
		}
		return
	}
	kind, name, _ := strings.Cut(caller, "/")
	if want := []string{fmt.Sprintf("CN=%s,OU=%s,O=lab.internal", name, kind)}; !slices.Equal(subjects, want) {
		t.Errorf("X-Client-Cert %q, want %q", subjects, want)
	}
	if len(forwarded) != 1 || !strings.Contains(forwarded[0], "By=spiffe://lab.internal/service/") ||
		!strings.Contains(forwarded[0], "URI=spiffe://lab.internal/"+caller) || !hash.MatchString(forwarded[0]) || !strings.Contains(forwarded[0], "DNS="+name) || !strings.Contains(forwarded[0], "Subject=") {
		t.Errorf("X-Forwarded-Client-Cert %q does not name %s", forwarded, caller)
	}
}

// The same over HTTP/2, where names are in lower case and an underscore is just a character, and in
// gRPC's metadata.
func TestForgedHeadersHTTP2(t *testing.T) {
	mesh := lab(t)
	for name, address := range map[string]string{"service/caller": mesh.outbound(t, "caller", "modern", 9082), "gateway/edge": mesh.inbound(t, "edge", 8082)} {
		conn := dialTCP(t, address)
		body, status := requestHTTP2(t, conn, []hpack.HeaderField{
			{Name: "x-client-cert", Value: forged},
			{Name: "x_client_cert", Value: forged},
			{Name: "x-forwarded_client-cert", Value: forged},
			{Name: "x-forwarded-client-cert", Value: "URI=" + forged},
			{Name: "x-honest", Value: "yes"},
		})
		if status != "200" {
			t.Errorf("%s: status %s %q", name, status, body)
			continue
		}
		honest(t, parseSeen(t, body), name)
	}
	md := metadata.Pairs("x-forwarded-client-cert", forged, "x_forwarded_client_cert", forged, "x-client-cert", forged)
	out := new(wrapperspb.StringValue)
	if err := dialGRPC(t, mesh.outbound(t, "caller", "rpc", 9090)).Invoke(metadata.NewOutgoingContext(t.Context(), md), methodUnary, wrapperspb.String("x"), out); err != nil {
		t.Fatal(err)
	}
	if got := out.GetValue(); strings.Contains(got, forged) || !strings.Contains(got, "URI=spiffe://lab.internal/service/caller") {
		t.Errorf("gRPC saw %q", got)
	}
}

// requestHTTP2 makes one request whose fields no client library would send.
func requestHTTP2(t *testing.T, conn io.ReadWriter, fields []hpack.HeaderField) (body, status string) {
	t.Helper()
	var block strings.Builder
	encoder := hpack.NewEncoder(&block)
	for _, f := range append([]hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "x"}, {Name: ":path", Value: "/forged"}}, fields...) {
		if err := encoder.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndHeaders: true, EndStream: true}); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("reading the answer: %v", err)
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				if err := framer.WriteSettingsAck(); err != nil {
					t.Fatal(err)
				}
			}
		case *http2.MetaHeadersFrame:
			status = f.PseudoValue("status")
			if f.StreamEnded() {
				return body, status
			}
		case *http2.DataFrame:
			body += string(f.Data())
			if f.StreamEnded() {
				return body, status
			}
		case *http2.RSTStreamFrame:
			return body, "reset " + f.ErrCode.String()
		}
	}
}

// X-Forwarded-For is set by the gateway, appended to by a peer that has proved itself, and replaced
// where nobody has.
func TestForwardedFor(t *testing.T) {
	mesh := lab(t)
	const lie = "203.0.113.7"
	ask := func(address string) []string {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-Forwarded-For", lie)
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return parseSeen(t, string(body)).Headers["X-Forwarded-For"]
	}
	if got := strings.Join(ask(mesh.inbound(t, "edge", 8080)), ", "); strings.Contains(got, lie) || got == "" {
		t.Errorf("through the gateway: %q, want the client's address and not what it said", got)
	}
	if got := strings.Join(ask(mesh.inbound(t, "recorder", 9081)), ", "); strings.Contains(got, lie) || got == "" {
		t.Errorf("from an anonymous caller: %q, want its address and not what it said", got)
	}
	if got := strings.Join(ask(mesh.outbound(t, "caller", "recorder", 9080)), ", "); !strings.HasPrefix(got, lie+", ") {
		t.Errorf("from a peer: %q, want what it said and its address", got)
	}
}
