package proxy

import (
	"errors"
	"io"
	"net"
)

// spliced is what went through between two connections.
type spliced struct {
	in, out int64 // bytes to and from the server
	broken  bool  // one of the two broke off
	early   bool  // the server ended first, without a byte
}

// splice copies bytes both ways until both sides have ended. An end on one side is passed on as an end
// of that direction only (a half-close); a break is passed on as a break. Both connections are closed
// when it returns.
//
// client and server read and write; endClient and endServer end the direction to each; abort breaks
// both. early, which may be nil, is called as soon as the server has ended without a byte while the
// client has not.
func splice(client, server io.ReadWriter, endClient, endServer func() error, abort, early func()) spliced {
	type direction struct {
		n   int64
		err error
	}
	toServer := make(chan direction, 1)
	go func() {
		n, err := copyBytes(server, client)
		if err == nil {
			err = endServer()
		}
		if err != nil {
			abort()
		}
		toServer <- direction{n, err}
	}()
	out, err := copyBytes(client, server)
	var s spliced
	select {
	case up := <-toServer:
		toServer <- up // the client ended first
	default:
		if s.early = out == 0; s.early && early != nil {
			early()
		}
	}
	if err == nil {
		err = endClient()
	}
	if err != nil {
		abort()
	}
	up := <-toServer
	s.in, s.out = up.n, out
	s.broken = err != nil || up.err != nil
	return s
}

// copyBytes copies until the source ends.
func copyBytes(to io.Writer, from io.Reader) (int64, error) {
	buffer := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buffer)
	total := int64(0)
	for {
		n, err := from.Read(buffer[:])
		if n > 0 {
			written, werr := to.Write(buffer[:n])
			total += int64(written)
			if werr != nil {
				return total, werr
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			return total, nil
		default:
			return total, err
		}
	}
}

// spliceConns is splice for two connections.
func spliceConns(client, server net.Conn, abort, early func()) spliced {
	s := splice(client, server,
		func() error { return endOf(client) }, func() error { return endOf(server) }, abort, early)
	client.Close()
	server.Close()
	return s
}

// endOf ends the direction to a connection; where that cannot be done alone, the end comes with the
// close.
func endOf(c net.Conn) error {
	if err := closeWrite(c); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
