//go:build !linux

package main

// harden does nothing here: the system has no switch that a process may set for itself. Turn core
// dumps off for the account that runs servers and sidecars.
func harden(string) error { return nil }
