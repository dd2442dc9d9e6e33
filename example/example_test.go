package example

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"countersign.dev/examples"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs an application on a free port until the test ends, and gives its address.
func serve(t *testing.T, app func(ctx context.Context, addr string) error) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	listener.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- app(ctx, addr) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the application did not end well: %v", err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatal("the application does not accept")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func get(t *testing.T, url string, header ...string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestColorteller(t *testing.T) {
	addr := serve(t, func(ctx context.Context, addr string) error {
		return Colorteller(ctx, addr, "yellow", slog.New(slog.DiscardHandler))
	})
	for path, want := range map[string]string{"/color": "yellow", "/color/caller": "anonymous", "/ping": ""} {
		if code, body := get(t, "http://"+addr+path); code != http.StatusOK || body != want {
			t.Errorf("GET %s = %d %q, want 200 %q", path, code, body, want)
		}
	}
	subject := "CN=colorgateway,OU=gateway,O=colorapp.internal"
	if _, body := get(t, "http://"+addr+"/color/caller", "X-Client-Cert", subject); body != subject {
		t.Errorf("the caller is %q, want %q", body, subject)
	}
	if code, _ := get(t, "http://"+addr+"/colour"); code != http.StatusNotFound {
		t.Errorf("an unknown path is %d, want 404", code)
	}
}

func TestColortellerWithoutPort(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	err = Colorteller(t.Context(), listener.Addr().String(), "red", slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("a port in use gives %v, want an error that names --listen", err)
	}
}

// shop starts the three services, each dialling the next.
func shop(t *testing.T) (front, stock string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	stock = serve(t, func(ctx context.Context, addr string) error { return Stock(ctx, addr, log) })
	catalog := serve(t, func(ctx context.Context, addr string) error { return Catalog(ctx, addr, stock, log) })
	front = serve(t, func(ctx context.Context, addr string) error { return Storefront(ctx, addr, catalog, log) })
	return front, stock
}

func TestShop(t *testing.T) {
	front, _ := shop(t)

	code, body := get(t, "http://"+front+"/products")
	var products []map[string]any
	if err := json.Unmarshal([]byte(body), &products); code != http.StatusOK || err != nil {
		t.Fatalf("GET /products = %d %q (%v)", code, body, err)
	}
	var got []string
	for _, p := range products {
		got = append(got, p["name"].(string))
	}
	if diff := cmp.Diff([]string{"cup", "spoon", "teapot"}, got); diff != "" {
		t.Errorf("products (-want +got):\n%s", diff)
	}
	if products[0]["stock"] != 96.0 || products[0]["price"] != 6.5 {
		t.Errorf("the cup is %v, want 96 at 6.5", products[0])
	}
	if code, body := get(t, "http://"+front+"/products/teapot"); code != http.StatusOK || !strings.Contains(body, `"stock": 12`) {
		t.Errorf("GET /products/teapot = %d %q", code, body)
	}
	if code, body := get(t, "http://"+front+"/products/piano"); code != http.StatusNotFound || !strings.Contains(body, "piano") {
		t.Errorf("GET /products/piano = %d %q, want 404", code, body)
	}
}

// TestQuote writes a name, reads its answer, and only then writes the next: streaming both ways.
func TestQuote(t *testing.T) {
	front, _ := shop(t)
	questions, write := io.Pipe()
	t.Cleanup(func() { write.Close() })
	ask := func(name string) {
		if _, err := io.WriteString(write, name+"\n"); err != nil {
			t.Errorf("asking for %s: %v", name, err)
		}
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+front+"/quote", questions)
	if err != nil {
		t.Fatal(err)
	}
	go ask("cup")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for _, name := range []string{"cup", "spoon"} {
		if name != "cup" {
			ask(name)
		}
		if !lines.Scan() || !strings.Contains(lines.Text(), `"name":"`+name+`"`) {
			t.Fatalf("the answer for %s is %q (%v)", name, lines.Text(), lines.Err())
		}
	}
	ask("piano")
	if !lines.Scan() || !strings.Contains(lines.Text(), "no product") {
		t.Errorf("the answer for piano is %q, want an error", lines.Text())
	}
	if lines.Scan() {
		t.Errorf("after an error there is still %q", lines.Text())
	}
}

func TestQuoteOfNothing(t *testing.T) {
	front, _ := shop(t)
	response, err := http.Post("http://"+front+"/quote", "text/plain", strings.NewReader("\n\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK || len(body) != 0 {
		t.Errorf("an empty quote is %d %q, want 200 and nothing", response.StatusCode, body)
	}
}

func TestStockHalfClose(t *testing.T) {
	_, stock := shop(t)
	conn, err := net.Dial("tcp", stock)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "cup\npiano\n\nteapot"); err != nil { // the last line without its end
		t.Fatal(err)
	}
	conn.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(conn)
	if want := "cup 96\npiano unknown\nteapot 12\ntotal 108\n"; err != nil || string(got) != want {
		t.Errorf("stock answers %q (%v), want %q", got, err, want)
	}
}

func TestStockRefusesLongLines(t *testing.T) {
	_, stock := shop(t)
	conn, err := net.Dial("tcp", stock)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, strings.Repeat("x", maxLine+1)); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(conn); len(got) != 0 {
		t.Errorf("a line without end is answered %q, want the connection closed", got)
	}
}

// TestUnavailable: a catalog that is not there is the storefront's 503, and nothing hangs.
func TestUnavailable(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := listener.Addr().String()
	listener.Close()
	front := serve(t, func(ctx context.Context, addr string) error { return Storefront(ctx, addr, nobody, log) })
	for _, path := range []string{"/products", "/products/cup"} {
		if code, body := get(t, "http://"+front+path); code != http.StatusServiceUnavailable {
			t.Errorf("GET %s without a catalog = %d %q, want 503", path, code, body)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	paths, err := Write("colorapp", dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, path := range paths {
		names = append(names, filepath.Base(path))
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := examples.Files.ReadFile("colorapp/" + filepath.Base(path))
		if err != nil || string(got) != string(want) {
			t.Errorf("%s differs from the embedded file (%v)", path, err)
		}
	}
	if diff := cmp.Diff([]string{"mesh.yaml", "one-way.yaml", "permissive.yaml", "rotation.yaml"}, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestWriteOverwritesNothing(t *testing.T) {
	dir := t.TempDir()
	mine := filepath.Join(dir, "rotation.yaml")
	if err := os.WriteFile(mine, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Write("colorapp", dir); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), mine) {
		t.Errorf("Write over a file = %v, want ErrExists that names it", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v (%v), want only the file that was there", entries, err)
	}
	if got, _ := os.ReadFile(mine); string(got) != "mine" {
		t.Errorf("the file holds %q now", got)
	}
	if _, err := Write("nosuch", dir); err == nil {
		t.Error("an unknown example was written")
	}
}
