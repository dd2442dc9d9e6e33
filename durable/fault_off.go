//go:build !faultinject

package durable

// Step marks a point between two changes of the disk. It does nothing in this build; in one with the
// tag faultinject it can end the process there, which is how tests prove that every such point
// survives a crash.
func Step(string) {}
