// Package wire looks at what really crosses loopback between two processes: whether it is TLS, and
// whether something that was said can be read there.
package wire

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// ErrForbidden says that this process may not look at the wire.
var ErrForbidden = errors.New("looking at the wire needs CAP_NET_RAW; run it as root, or with --skip-checks")

// most is how much of each flow is kept.
const most = 64 << 10

// Flow is what was seen of one direction of a TCP connection.
type Flow struct {
	From, To uint16 // ports
	// Began tells that its first byte was seen.
	Began bool
	Data  []byte

	next uint32 // the sequence number that comes next
	gap  bool   // something was not seen; what comes after it is dropped
}

// flows gathers packets.
type flows map[[2]uint16]*Flow

// packet is a TCP segment.
type packet struct {
	from, to uint16
	sequence uint32
	syn      bool
	data     []byte
}

var errOther = errors.New("not a TCP segment over IPv4")

// parse reads an IPv4 packet.
func parse(ip []byte) (packet, error) {
	if len(ip) < 20 || ip[0]>>4 != 4 || ip[9] != 6 {
		return packet{}, errOther
	}
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if total == 0 || total > len(ip) { // segmentation is left to a card that loopback does not have
		total = len(ip)
	}
	if header < 20 || total < header+20 {
		return packet{}, errOther
	}
	tcp := ip[header:total]
	offset := int(tcp[12]>>4) * 4
	if offset < 20 || offset > len(tcp) {
		return packet{}, errOther
	}
	return packet{
		from: binary.BigEndian.Uint16(tcp), to: binary.BigEndian.Uint16(tcp[2:]),
		sequence: binary.BigEndian.Uint32(tcp[4:]), syn: tcp[13]&2 != 0, data: tcp[offset:],
	}, nil
}

// add puts a segment where it belongs.
func (all flows) add(p packet) {
	key := [2]uint16{p.from, p.to}
	f := all[key]
	if p.syn || f == nil {
		if len(p.data) == 0 && !p.syn {
			return // a flow begins with something to look at
		}
		f = &Flow{From: p.from, To: p.to, Began: p.syn, next: p.sequence}
		if p.syn {
			f.next++
		}
		all[key] = f
	}
	ahead := int32(p.sequence - f.next) // sequence numbers wrap around
	if p.syn || len(p.data) == 0 || ahead < 0 || f.gap {
		return
	}
	if ahead > 0 {
		f.gap = true
		return
	}
	f.next += uint32(len(p.data))
	f.Data = append(f.Data, p.data[:min(len(p.data), most-len(f.Data))]...)
}

// sorted gives the flows in an order.
func (all flows) sorted() []Flow {
	var list []Flow
	for _, f := range all {
		list = append(list, *f)
	}
	slices.SortFunc(list, func(a, b Flow) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return list
}

// Encrypted tells whether a flow is made of TLS records (RFC 8446 section 5.1), with a handshake at its
// beginning, and shows nothing of what is secret.
func (f Flow) Encrypted(secret []byte) error {
	if bytes.Contains(f.Data, secret) {
		return fmt.Errorf("from port %d to port %d a secret is readable on the wire", f.From, f.To)
	}
	const (
		changeCipherSpec, alert, handshake, applicationData = 20, 21, 22, 23
		largest                                             = 1<<14 + 256
	)
	first := true
	for rest := f.Data; len(rest) >= 5; first = false {
		kind, length := rest[0], int(binary.BigEndian.Uint16(rest[3:]))
		if kind < changeCipherSpec || kind > applicationData || rest[1] != 3 || length > largest {
			return fmt.Errorf("from port %d to port %d there is no TLS record but %q", f.From, f.To, rest[:min(len(rest), 16)])
		}
		if first && f.Began && kind != handshake {
			return fmt.Errorf("from port %d to port %d the first record is of type %d, not a handshake", f.From, f.To, kind)
		}
		rest = rest[min(len(rest), 5+length):]
	}
	return nil
}

// Judge looks at flows with the port of a listener: there has to be something in both directions, all
// of it encrypted.
func Judge(all []Flow, port uint16, secret []byte) error {
	var in, out bool
	for _, f := range all {
		if f.From != port && f.To != port || len(f.Data) == 0 {
			continue
		}
		if err := f.Encrypted(secret); err != nil {
			return err
		}
		in, out = in || f.To == port, out || f.From == port
	}
	if !in || !out {
		return fmt.Errorf("nothing was seen to and from port %d on the wire", port)
	}
	return nil
}
