// Package integration holds the tests of the whole: meshes that the real binary runs, and real peers
// that speak to them (OpenSSL, curl, wrk, h2load, grpc-go). There is nothing in it to import.
//
// A peer that is not installed skips its test with one loud line, and fails it when CI=true. Timings
// are logged, never asserted. The long forms run with COUNTERSIGN_SOAK=1 (`make soak`).
package integration
