//go:build !linux

package loop

func newPoller(l *Loop, _ bool) (poller, error) { return newPortable(l), nil }
