package flags

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"countersign.dev/id"
)

// Endpoint is where a called port is reached.
type Endpoint struct {
	Service string
	Port    int
	Host    string // a name or an address
	At      uint16
}

// ParseEndpoint reads SERVICE:PORT=HOST:PORT. Its errors say what to write.
func ParseEndpoint(text string) (Endpoint, error) {
	form := errors.New("write SERVICE:PORT=HOST:PORT, such as catalog:9000=catalog.internal:9000")
	called, address, both := strings.Cut(text, "=")
	service, port, ported := strings.Cut(called, ":")
	number, err := strconv.ParseUint(port, 10, 16)
	if !both || !ported || err != nil || number == 0 || id.CheckLabel(service) != nil {
		return Endpoint{}, form
	}
	host, at, err := net.SplitHostPort(address)
	if err != nil {
		return Endpoint{}, form
	}
	reached, err := strconv.ParseUint(at, 10, 16)
	if err != nil || reached == 0 {
		return Endpoint{}, form
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" || ip.IsUnspecified() {
			return Endpoint{}, fmt.Errorf("nobody is reached at %s", ip)
		}
	} else if id.CheckDNSName(strings.ToLower(host)) != nil {
		return Endpoint{}, fmt.Errorf("%.200q is neither a DNS name nor an IP address", host)
	}
	return Endpoint{service, int(number), host, uint16(reached)}, nil
}
