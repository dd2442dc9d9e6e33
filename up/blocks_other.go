//go:build !linux

package up

import (
	"context"
	"net/netip"
)

// allocateOwn gives way to allocateShared: elsewhere every address beside 127.0.0.1 would have to be
// set up by an administrator first.
func allocateOwn(context.Context, []*instance, []netip.Prefix) (*placement, error) {
	return nil, errNoOwnAddresses
}
