// Package deliver knows how a certificate that changes in a store reaches a proxy that runs.
package deliver

import "context"

// Source is where credentials come from.
type Source interface {
	// Offer gives what is current, whole and of one version. The caller owns it, and overwrites its secrets.
	Offer(ctx context.Context) (*Offer, error)
}
