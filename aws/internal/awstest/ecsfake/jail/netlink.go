//go:build linux

package jail

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// vethPeer is VETH_INFO_PEER of linux/veth.h.
const vethPeer = 1

// message is one request to the kernel's routing tables (netlink(7), rtnetlink(7)), in the byte order of this machine.
type message struct {
	kind  uint16
	flags uint16
	body  []byte
}

// attribute appends one attribute, padded to four bytes.
func (m *message) attribute(kind uint16, value []byte) {
	m.body = binary.NativeEndian.AppendUint16(m.body, uint16(4+len(value)))
	m.body = binary.NativeEndian.AppendUint16(m.body, kind)
	m.body = append(m.body, value...)
	for len(m.body)%4 != 0 {
		m.body = append(m.body, 0)
	}
}

// text appends a name, ended by a zero byte.
func (m *message) text(kind uint16, name string) { m.attribute(kind, append([]byte(name), 0)) }

// number appends a 32-bit number.
func (m *message) number(kind uint16, n int) {
	m.attribute(kind, binary.NativeEndian.AppendUint32(nil, uint32(n)))
}

// nested appends an attribute that holds attributes, perhaps behind a header.
func (m *message) nested(kind uint16, header []byte, fill func(inner *message)) {
	inner := message{body: header}
	fill(&inner)
	m.attribute(kind, inner.body)
}

// interfaceHeader is struct ifinfomsg: of which interface, and which flags it gets.
func interfaceHeader(index int, up bool) []byte {
	header := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(header[4:], uint32(index))
	if up {
		binary.NativeEndian.PutUint32(header[8:], unix.IFF_UP)
		binary.NativeEndian.PutUint32(header[12:], unix.IFF_UP)
	}
	return header
}

// send gives a request to the kernel, in the network namespace of the calling thread, and waits for its answer.
func (m *message) send() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	var packet []byte
	packet = binary.NativeEndian.AppendUint32(packet, uint32(unix.SizeofNlMsghdr+len(m.body)))
	packet = binary.NativeEndian.AppendUint16(packet, m.kind)
	packet = binary.NativeEndian.AppendUint16(packet, m.flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	packet = append(packet, make([]byte, 8)...) // sequence number and port: one request, one socket
	packet = append(packet, m.body...)
	if err := unix.Sendto(fd, packet, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	answer := make([]byte, os.Getpagesize())
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return fmt.Errorf("receive from netlink: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("netlink gave an answer that is no acknowledgement")
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// linkUp sets an interface up.
func linkUp(index int) error {
	m := message{kind: unix.RTM_NEWLINK, body: interfaceHeader(index, true)}
	return m.send()
}

// addBridge makes a bridge that is up. Its hardware address is set: otherwise it is the lowest of its members',
// and changes under the feet of those who have looked it up when one comes or goes.
func addBridge(name string) error {
	m := message{kind: unix.RTM_NEWLINK, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: interfaceHeader(0, true)}
	m.text(unix.IFLA_IFNAME, name)
	m.attribute(unix.IFLA_ADDRESS, []byte{2, 0, 0, 0, 0, 1})
	m.nested(unix.IFLA_LINKINFO, nil, func(info *message) { info.text(unix.IFLA_INFO_KIND, "bridge") })
	return m.send()
}

// addPair makes a pair of interfaces: one on the bridge, the other one, of the name eth0, in the namespace.
func addPair(name string, bridge, namespace int) error {
	m := message{kind: unix.RTM_NEWLINK, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: interfaceHeader(0, true)}
	m.text(unix.IFLA_IFNAME, name)
	m.number(unix.IFLA_MASTER, bridge)
	m.nested(unix.IFLA_LINKINFO, nil, func(info *message) {
		info.text(unix.IFLA_INFO_KIND, "veth")
		info.nested(unix.IFLA_INFO_DATA, nil, func(data *message) {
			data.nested(vethPeer, interfaceHeader(0, false), func(peer *message) {
				peer.text(unix.IFLA_IFNAME, "eth0")
				peer.number(unix.IFLA_NET_NS_FD, namespace)
			})
		})
	})
	return m.send()
}

// addAddress gives an interface an IPv4 address.
func addAddress(index int, address netip.Prefix) error {
	header := []byte{unix.AF_INET, byte(address.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	header = binary.NativeEndian.AppendUint32(header, uint32(index))
	m := message{kind: unix.RTM_NEWADDR, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: header}
	ip := address.Addr().AsSlice()
	m.attribute(unix.IFA_LOCAL, ip)
	m.attribute(unix.IFA_ADDRESS, ip)
	return m.send()
}

// addDefaultRoute sends everything else to a gateway.
func addDefaultRoute(gateway netip.Addr) error {
	header := make([]byte, unix.SizeofRtMsg)
	header[0] = unix.AF_INET
	header[4] = unix.RT_TABLE_MAIN
	header[5] = unix.RTPROT_STATIC
	header[6] = unix.RT_SCOPE_UNIVERSE
	header[7] = unix.RTN_UNICAST
	m := message{kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: header}
	m.attribute(unix.RTA_GATEWAY, gateway.AsSlice())
	return m.send()
}
