package acmpca

import (
	"fmt"

	"countersign.dev/mesh"
)

// PricesOf is when the prices here were read, on https://aws.amazon.com/private-ca/pricing/ (US East). AWS may have others
// by now, and in other regions: what is computed of them is an estimate.
const PricesOf = "2026-11-01"

// Prices in US dollars.
const (
	caGeneral, caShort = 400, 50 // a month, for each CA
	certificateShort   = 0.058   // each
)

// tiers are what a certificate of a general-purpose CA costs, by how many were issued in the month, account and region.
var tiers = []struct {
	upTo  int // how many cost that much; 0: all further ones
	price float64
}{{1000, 0.75}, {10000, 0.35}, {0, 0.001}}

// Price says in words what a CA of a mode costs: for each month of its life, and for each certificate. Any other word than
// [mesh.ModeShortLived] is the general-purpose mode.
func Price(mode string) (authority, certificate string) {
	if mode == mesh.ModeShortLived {
		return fmt.Sprintf("$%d a month", caShort), fmt.Sprintf("$%.3f each", certificateShort)
	}
	return fmt.Sprintf("$%d a month", caGeneral), fmt.Sprintf("$%.2f each (up to %d in a month and region, then $%.2f, and $%.3f beyond %d)",
		tiers[0].price, tiers[0].upTo, tiers[1].price, tiers[2].price, tiers[1].upTo)
}

// Cost estimates in US dollars what further certificates cost when some were issued in the month before them.
func Cost(mode string, issued, further int) float64 {
	if mode == mesh.ModeShortLived {
		return float64(max(further, 0)) * certificateShort
	}
	total := 0.0
	for _, tier := range tiers {
		if further <= 0 {
			break
		}
		n := further
		if tier.upTo > 0 {
			n = min(further, max(tier.upTo-issued, 0))
		}
		total += float64(n) * tier.price
		issued, further = issued+n, further-n
	}
	return total
}
