//go:build unix

package durable

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// ListenPrivately makes a UNIX socket (SOCK_STREAM) at path that only its own user can connect to. Nobody can before it
// listens, and by then its mode is 0600. The umask would be that of the whole process: a child that is started at the
// same moment would keep it, and a directory that is made could not be entered.
//
// What stands at path is syscall.EADDRINUSE, also a socket that a dead process has left. When it fails it leaves
// nothing; closing the listener removes the socket.
func ListenPrivately(path string) (net.Listener, error) {
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close() // the listener has a copy
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("binding %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	if err := syscall.Listen(fd, syscall.SOMAXCONN); err != nil {
		return nil, errors.Join(os.NewSyscallError("listen", err), os.Remove(path))
	}
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	if socket, ok := listener.(*net.UnixListener); ok {
		socket.SetUnlinkOnClose(true)
	}
	return listener, nil
}
