package main

import (
	"countersign.dev/bench/internal/rig"
	"countersign.dev/bench/internal/tally"
)

// The groups of targets.
const (
	groupSmall  = "Small requests"
	groupLarge  = "Large bodies and latency"
	groupPeople = "Connections and rest"
)

// envoyFactor is by how much Envoy, reading HTTP, is to be beaten in CPU per request.
const envoyFactor = 5

// noise is how far two setups that cost the same may seem apart.
const noise = 1.1

// targets are the figures that are asked of the product.
func targets() []tally.Target {
	return []tally.Target{
		{Group: groupSmall, What: "CPU per request, 128 B, 64 connections", Row: "http-128-c64", Setup: rig.Ours, Metric: "cpu", Limit: 0.45},
		{Group: groupSmall, What: "requests per second, 128 B, 64 connections", Row: "http-128-c64", Setup: rig.Ours, Metric: "rate", Limit: 1.7, AtLeast: true},
		{Group: groupSmall, What: "CPU per request, 128 B, 512 connections", Row: "http-128-c512", Setup: rig.Ours, Metric: "cpu", Limit: 0.5},
		{Group: groupSmall, What: "CPU per request, our sidecar to NGINX", Row: "mixed-128-c64", Setup: rig.MixedOut, Metric: "cpu", Limit: 0.8},
		{Group: groupSmall, What: "CPU per request, NGINX to our sidecar", Row: "mixed-128-c64", Setup: rig.MixedIn, Metric: "cpu", Limit: 0.8},
		{Group: groupSmall, What: "CPU per unary gRPC call", Row: "grpc-unary", Setup: rig.Ours, Metric: "cpu", Limit: 0.5},
		{Group: groupSmall, What: "CPU per request, NGINX as rendered over NGINX by hand with the same duties", Row: "rendered-128-c64", Setup: rig.NGINXRendered, Beside: rig.NGINXDuties, Metric: "cpu", Limit: noise},
		{Group: groupSmall, What: "CPU per request, HAProxy as rendered over HAProxy by hand with the same duties", Row: "rendered-128-c64", Setup: rig.HAProxyRendered, Beside: rig.HAProxyDuties, Metric: "cpu", Limit: noise},
		{Group: groupLarge, What: "throughput, 1 MiB", Row: "http-1m-c4", Setup: rig.Ours, Metric: "throughput", Limit: 1.25, AtLeast: true},
		{Group: groupLarge, What: "CPU per request, 1 MiB", Row: "http-1m-c4", Setup: rig.Ours, Metric: "cpu", Limit: 0.7},
		{Group: groupLarge, What: "p50, 128 B, 1 connection", Row: "http-128-c1", Setup: rig.Ours, Metric: "p50", Limit: 0.85},
		{Group: groupLarge, What: "p99 of small requests beside four streams of 1 MiB", Row: "beside-1m", Setup: rig.Ours, Metric: "p99", Limit: 1},
		{Group: groupPeople, What: "CPU per new mTLS connection, receiving sidecar, X25519", Row: "handshake-full", Setup: rig.Ours, Metric: "cpu_receiving", Limit: 0.42},
		{Group: groupPeople, What: "CPU per new mTLS connection, both sidecars, X25519", Row: "handshake-full", Setup: rig.Ours, Metric: "cpu_both", Limit: 0.42},
		{Group: groupPeople, What: "KiB per idle mTLS connection, 5,000 held", Row: "idle", Setup: rig.Ours, Metric: "mtls_5000", Limit: 20, Absolute: true},
		{Group: groupPeople, What: "KiB per idle plaintext connection, 5,000 held", Row: "idle", Setup: rig.Ours, Metric: "plain_5000", Limit: 12, Absolute: true},
		{Group: groupPeople, What: "MiB of the connecting sidecar at rest", Row: "idle", Setup: rig.Ours, Metric: "rest_connecting", Limit: 25, Absolute: true},
		{Group: groupPeople, What: "MiB of the receiving sidecar at rest", Row: "idle", Setup: rig.Ours, Metric: "rest_receiving", Limit: 25, Absolute: true},
		// /proc counts in hundredths of a second: this is two of them in ten seconds, for both together.
		{Group: groupPeople, What: "% of a processor at rest", Row: "idle", Setup: rig.Ours, Metric: "rest_cpu", Limit: 0.2, Absolute: true},
	}
}
