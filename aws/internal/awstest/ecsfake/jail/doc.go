// Package jail runs programs the way a container runtime does, for tests: each in a mount, process and
// host-name namespace of its own, with a root file system made of the few files that its image has, in a
// network namespace that belongs to a task and hangs on a bridge.
//
// All of it stands inside namespaces of the test binary's own, which Enter makes: the bridge and the
// addresses are invisible to the rest of the machine, cannot collide with anybody's, and are gone, with every
// process, as soon as the test binary is, however it ended. It needs root on Linux.
package jail
