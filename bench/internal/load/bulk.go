package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// Upload sends as much as goes through over some TCP connections for a time. The first byte of each
// tells the application to count; it knows how much has come.
func Upload(ctx context.Context, address string, connections int, duration time.Duration, first byte) error {
	const chunk = 256 << 10
	end := time.Now().Add(duration)
	errs := make([]error, connections)
	var group sync.WaitGroup
	for i := range connections {
		group.Go(func() { errs[i] = upload(ctx, address, end, first, chunk) })
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sending to %s: %w", address, err)
	}
	return ctx.Err()
}

func upload(ctx context.Context, address string, end time.Time, first byte, chunk int) error {
	dialer := net.Dialer{Deadline: end}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetWriteDeadline(end); err != nil {
		return err
	}
	buffer := make([]byte, chunk)
	buffer[0] = first
	for {
		_, err := conn.Write(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
