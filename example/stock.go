package example

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// inventory is what the shop has, by product.
var inventory = map[string]int{"teapot": 12, "cup": 96, "spoon": 0}

const (
	maxLine   = 256             // characters of a request line
	idleLimit = 5 * time.Minute // between two lines
)

// Stock serves the shop's TCP service on addr until ctx ends. A client writes names of products, one a
// line, and reads "NAME COUNT" or "NAME unknown" for each; when it closes its sending half it reads
// "total COUNT", the sum of what it was told, and the end.
func Stock(ctx context.Context, addr string, log *slog.Logger) error {
	return serveLines(ctx, addr, log, countStock)
}

// serveLines holds a conversation on each connection to addr until ctx ends.
func serveLines(ctx context.Context, addr string, log *slog.Logger, converse func(context.Context, net.Conn) error) error {
	listener, err := listen(ctx, addr)
	if err != nil {
		return err
	}
	log.InfoContext(ctx, "serving", "address", listener.Addr().String())
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	for {
		conn, err := listener.Accept()
		switch {
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("accepting on %s: %w", addr, err)
		}
		running.Go(func() {
			defer conn.Close()
			// A conversation that runs when the application is told to stop may end, for a while.
			stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now().Add(stopTimeout)) })
			defer stop()
			if err := converse(ctx, conn); err != nil {
				log.WarnContext(ctx, "a conversation broke off", "remote", conn.RemoteAddr().String(), "error", err)
			}
		})
	}
}

// countStock holds one conversation.
func countStock(ctx context.Context, conn net.Conn) error {
	reader := bufio.NewReaderSize(conn, maxLine)
	total := 0
	for {
		if ctx.Err() == nil {
			conn.SetReadDeadline(time.Now().Add(idleLimit))
		}
		line, err := reader.ReadSlice('\n')
		name := strings.TrimSpace(string(line))
		if name != "" && (err == nil || errors.Is(err, io.EOF)) {
			count, known := inventory[name]
			total += count
			answer := name + " unknown\n"
			if known {
				answer = name + " " + strconv.Itoa(count) + "\n"
			}
			if _, err := io.WriteString(conn, answer); err != nil {
				return fmt.Errorf("answering: %w", err)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			_, err := fmt.Fprintf(conn, "total %d\n", total)
			return err
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("a line has more than %d characters", maxLine)
		case err != nil:
			return fmt.Errorf("reading: %w", err)
		}
	}
}

// askStock asks the stock service at addr how many there are of each product; one that the service
// does not know is left out.
func askStock(ctx context.Context, addr string, names ...string) (map[string]int, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("calling stock: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	if _, err := io.WriteString(conn, strings.Join(names, "\n")+"\n"); err != nil {
		return nil, fmt.Errorf("asking stock: %w", err)
	}
	if half, ok := conn.(*net.TCPConn); ok {
		if err := half.CloseWrite(); err != nil {
			return nil, fmt.Errorf("ending the questions to stock: %w", err)
		}
	}
	counts := make(map[string]int, len(names))
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		name, count, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.Atoi(count)
		switch {
		case name == "total":
			return counts, nil
		case err == nil:
			counts[name] = n
		}
	}
	return nil, errors.New("stock closed the connection before it had answered")
}
