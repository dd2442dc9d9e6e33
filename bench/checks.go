package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"countersign.dev/bench/internal/load"
	"countersign.dev/bench/internal/rig"
	"countersign.dev/bench/internal/wire"
)

// speak says something to a port and expects the application's answer. A nil configuration is plaintext.
type speak func(ctx context.Context, address string, config *tls.Config, text string) error

// protocols are the ports of a chain: at the connecting side, at the receiving side, and how they are
// spoken to.
func protocols(c *rig.Chain) map[string]struct {
	plain, peer string
	speak       speak
} {
	type ports = struct {
		plain, peer string
		speak       speak
	}
	return map[string]ports{
		"HTTP": {c.HTTP, c.PeerHTTP, speakHTTP}, "gRPC": {c.GRPC, c.PeerGRPC, speakGRPC}, "TCP": {c.TCP, c.PeerTCP, speakTCP},
	}
}

// speakPatience bounds one try of a check. Some peers keep silent rather than refuse.
const speakPatience = 2 * time.Second

func open(ctx context.Context, address string, config *tls.Config) (net.Conn, error) {
	dialer := net.Dialer{}
	if config == nil {
		return dialer.DialContext(ctx, "tcp", address)
	}
	return (&tls.Dialer{NetDialer: &dialer, Config: config}).DialContext(ctx, "tcp", address)
}

func speakHTTP(ctx context.Context, address string, config *tls.Config, text string) error {
	if config != nil {
		config.NextProtos = []string{"http/1.1"}
	}
	conn, err := open(ctx, address, config)
	if err != nil {
		return err
	}
	defer conn.Close()
	return load.Port{Address: address, Path: rig.PathSmall + "?" + text}.Ask(conn, speakPatience)
}

func speakTCP(ctx context.Context, address string, config *tls.Config, text string) error {
	conn, err := open(ctx, address, config)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(speakPatience)); err != nil {
		return err
	}
	if _, err := conn.Write(append([]byte{rig.TCPEcho}, text...)); err != nil {
		return err
	}
	var answer []byte
	buffer := make([]byte, 1024)
	for !bytes.HasSuffix(answer, []byte(text)) {
		n, err := conn.Read(buffer)
		if answer = append(answer, buffer[:n]...); err != nil {
			return fmt.Errorf("after %q: %w", answer, err)
		}
	}
	return nil
}

func speakGRPC(ctx context.Context, address string, config *tls.Config, text string) error {
	transport := insecure.NewCredentials()
	if config != nil {
		transport = credentials.NewTLS(config)
	}
	client, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(transport), grpc.WithAuthority(rig.ServerDNS))
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // it was only asked once
	ctx, cancel := context.WithTimeout(ctx, speakPatience)
	defer cancel()
	var answer wrapperspb.BytesValue
	if err := client.Invoke(ctx, rig.Method, wrapperspb.Bytes([]byte(text)), &answer); err != nil {
		return err
	}
	if string(answer.GetValue()) != text {
		return fmt.Errorf("the answer is %q, not %q", answer.GetValue(), text)
	}
	return nil
}

// check sees that a setup does what it is measured for: mutual TLS 1.3 between the sidecars, whose bytes
// nobody can read, and nobody else let in.
func (b *bench) check(ctx context.Context, s *rig.Setup, c *rig.Chain) error {
	if b.SkipChecks {
		return nil
	}
	checked := 0
	for name, p := range protocols(c) {
		if p.plain == "" || p.peer == "" {
			continue
		}
		checked++
		if err := b.checkWire(ctx, p.plain, p.peer, p.speak); err != nil {
			return fmt.Errorf("%s does not do mutual TLS, over %s: %w", s.Name, name, err)
		}
		if err := b.checkStrangers(ctx, p.peer, p.speak); err != nil {
			return fmt.Errorf("%s does not do mutual TLS, over %s: %w", s.Name, name, err)
		}
	}
	if checked == 0 {
		return fmt.Errorf("%s has no port to be checked", s.Name)
	}
	if err := b.checkName(ctx, s, c); err != nil {
		return fmt.Errorf("%s does not do mutual TLS: %w", s.Name, err)
	}
	b.log.InfoContext(ctx, "does mutual TLS, with client certificates required", "setup", s.Name, "protocols", checked)
	return nil
}

// checkWire says something to an application's port and looks for it between the sidecars.
func (b *bench) checkWire(ctx context.Context, plain, peer string, say speak) error {
	_, text, err := net.SplitHostPort(peer)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return err
	}
	capture, err := wire.Start(uint16(port))
	if err != nil {
		return err
	}
	const secret = "nobody-else-is-to-read-this"
	err = say(ctx, plain, nil, secret)
	flows := capture.Stop()
	if err != nil {
		return fmt.Errorf("the application is not reached: %w", err)
	}
	return wire.Judge(flows, uint16(port), []byte(secret))
}

// checkStrangers connects to the receiving side as those who may and those who may not.
func (b *bench) checkStrangers(ctx context.Context, peer string, say speak) error {
	certificate, pool, err := b.rig.Client.Load()
	if err != nil {
		return err
	}
	foreign, err := rig.Stranger()
	if err != nil {
		return err
	}
	config := func(certificate *tls.Certificate) *tls.Config {
		config := load.NewMember(certificate, pool, rig.ServerDNS).TLS()
		config.NextProtos = nil
		return config
	}
	var agreed tls.ConnectionState
	member := func() error {
		mine := config(&certificate)
		mine.VerifyConnection = func(state tls.ConnectionState) error { agreed = state; return nil }
		return say(ctx, peer, mine, "a-member")
	}
	if err := member(); err != nil {
		return fmt.Errorf("a member of the mesh is refused: %w", err)
	}
	if agreed.CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		return fmt.Errorf("it chooses %s, not AES-128-GCM as the baseline", tls.CipherSuiteName(agreed.CipherSuite))
	}
	for who, config := range map[string]*tls.Config{
		"a client without a certificate":           config(nil),
		"a client of an authority nobody knows":    config(&foreign),
		"a client in plaintext at a port with TLS": nil,
	} {
		if err := say(ctx, peer, config, "a-stranger"); err == nil {
			return fmt.Errorf("%s is let in", who)
		}
	}
	if err := member(); err != nil {
		return fmt.Errorf("a member of the mesh is refused after strangers came: %w", err)
	}
	return nil
}

// checkName sees that the connecting side looks whom it connects to: an endpoint with another
// workload's certificate gets nothing.
func (b *bench) checkName(ctx context.Context, s *rig.Setup, c *rig.Chain) (err error) {
	if s.Connect == nil || c.TCP == "" {
		return nil
	}
	for _, far := range []struct {
		identity rig.Identity
		good     bool
	}{{b.rig.Server, true}, {b.rig.Client, false}} {
		half, err := s.Connect(ctx, rig.Far{Identity: far.identity})
		if err == nil {
			err = speakTCP(ctx, half.TCP, nil, "who-are-you")
			if far.good && err != nil {
				err = fmt.Errorf("the connecting side does not reach the right peer: %w", err)
			} else if !far.good && err == nil {
				err = errors.New("the connecting side speaks to whoever has a certificate of the authority")
			} else {
				err = nil
			}
		}
		if half != nil {
			err = errors.Join(err, half.Stop())
		}
		if err != nil {
			return err
		}
	}
	return nil
}
