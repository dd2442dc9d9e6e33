package wire

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Capture reads the packets of some TCP ports on loopback.
type Capture struct {
	socket int
	ports  []uint16
	stop   chan struct{} // closed by Stop
	done   chan struct{} // closed when flows is complete
	flows  flows         // the reading goroutine's until done is closed
}

// Start begins to read.
func Start(ports ...uint16) (*Capture, error) {
	loopback, err := net.InterfaceByName("lo")
	if err != nil {
		return nil, fmt.Errorf("finding loopback: %w", err)
	}
	// Of no protocol yet: nothing comes before the filter is in place.
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) {
		return nil, ErrForbidden
	}
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	// A long queue. What does not fit is a gap, which shows.
	_ = unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	timeout := unix.NsecToTimeval((50 * time.Millisecond).Nanoseconds())
	err = errors.Join(
		attach(socket, ports),
		unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: loopback.Index}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading from loopback: %w", err), unix.Close(socket))
	}
	c := &Capture{socket: socket, ports: ports, stop: make(chan struct{}), done: make(chan struct{}), flows: make(flows)}
	go c.read()
	return c, nil
}

// attach lets only segments of the ports through, so that what others say on loopback keeps nobody busy.
func attach(socket int, ports []uint16) error {
	// The header of IPv4 comes first. Jumps that are not taken go on, and lastly nothing passes.
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_TCP, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadMemShift{Off: 0}, // X is where TCP's header begins
	}
	for _, offset := range []uint32{0, 2} { // of the source's port and the destination's
		for _, port := range ports {
			program = append(program,
				bpf.LoadIndirect{Off: offset, Size: 2},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(port), SkipTrue: 1},
				bpf.RetConstant{Val: 1 << 17},
			)
		}
	}
	raw, err := bpf.Assemble(append(program, bpf.RetConstant{Val: 0}))
	if err != nil {
		return fmt.Errorf("making a filter of packets: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(socket, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// Stop gives what was seen. What was sent before it has been read then.
func (c *Capture) Stop() []Flow {
	close(c.stop)
	<-c.done
	return c.flows.sorted()
}

func (c *Capture) read() {
	defer close(c.done)
	defer func() { _ = unix.Close(c.socket) }()
	buffer := make([]byte, 1<<17)
	for {
		n, from, err := unix.Recvfrom(c.socket, buffer, 0)
		if err != nil {
			select {
			case <-c.stop: // and nothing is left to read
				return
			default:
				continue // nothing came for a while
			}
		}
		// Each packet is seen twice on loopback: when it leaves, and when it arrives.
		if link, ok := from.(*unix.SockaddrLinklayer); !ok || link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		p, err := parse(buffer[:n])
		if err == nil && (slices.Contains(c.ports, p.from) || slices.Contains(c.ports, p.to)) {
			c.flows.add(p)
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
