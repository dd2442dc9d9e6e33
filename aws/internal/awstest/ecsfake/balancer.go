//go:build linux

package ecsfake

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
)

// The states of targets.
const (
	initial   = elb.TargetHealthStateEnumInitial
	healthy   = elb.TargetHealthStateEnumHealthy
	unhealthy = elb.TargetHealthStateEnumUnhealthy
	draining  = elb.TargetHealthStateEnumDraining
	gone      = elb.TargetHealthStateEnumUnused
)

// balancer is a Network Load Balancer: one address of the bridge, and listeners there. The double's lock guards it.
type balancer struct {
	elb.LoadBalancer
	address    netip.Addr
	attributes map[string]string
	listeners  []*listener
}

// dnsName is its name in tasks.
func (b *balancer) dnsName() string { return aws.ToString(b.DNSName) }

// close stops listening.
func (b *balancer) close() {
	for _, l := range b.listeners {
		if l.socket != nil {
			l.socket.Close()
		}
	}
}

// listener is one port of a balancer.
type listener struct {
	elb.Listener
	socket net.Listener // nil for what is only recorded
	group  *group       // nil for what is only recorded
}

// group is a target group. The double's lock guards it.
type group struct {
	elb.TargetGroup
	attributes map[string]string
	targets    []*target
	turn       int // whose turn it is
}

// arn is the group's name in the API.
func (g *group) arn() string { return aws.ToString(g.TargetGroupArn) }

// target is one address of a group.
type target struct {
	group   *group
	address netip.AddrPort
	state   elb.TargetHealthStateEnum
	reason  elb.TargetHealthReasonEnum
	conns   map[net.Conn]bool
}

// group finds a target group by its ARN. The lock is held.
func (f *Fake) group(arn string) *group {
	for _, g := range f.groups {
		if g.arn() == arn {
			return g
		}
	}
	return nil
}

// balanced says whether a listener leads to a group. The lock is held.
func (f *Fake) balanced(g *group) bool {
	return slices.ContainsFunc(f.balancers, func(b *balancer) bool {
		return slices.ContainsFunc(b.listeners, func(l *listener) bool { return l.group == g })
	})
}

// add adds a target, and looks after its health. The lock is held.
func (f *Fake) add(g *group, address netip.AddrPort) *target {
	t := &target{group: g, address: address, state: initial, reason: elb.TargetHealthReasonEnumRegistrationInProgress, conns: map[net.Conn]bool{}}
	g.targets = append(g.targets, t)
	f.run(func() { f.probe(t) })
	return t
}

// probe checks a target's health until it is deregistered.
func (f *Fake) probe(t *target) {
	good, bad := int32(0), int32(0)
	for {
		f.mu.Lock()
		g, state, reason := t.group.TargetGroup, t.state, t.reason
		f.mu.Unlock()
		if state == draining || state == gone {
			return
		}
		err := f.check(g, t.address)
		if err == nil {
			good, bad = good+1, 0
		} else {
			good, bad = 0, bad+1
		}
		switch {
		case good >= orDefaultNumber(g.HealthyThresholdCount, 5):
			state, reason = healthy, ""
		case bad >= orDefaultNumber(g.UnhealthyThresholdCount, 2):
			state, reason = unhealthy, elb.TargetHealthReasonEnumFailedHealthChecks
		case state == initial:
			reason = elb.TargetHealthReasonEnumInitialHealthChecking
		}
		f.mu.Lock()
		if t.state != draining && t.state != gone && (t.state != state || t.reason != reason) {
			t.state, t.reason = state, reason
			f.wake()
		}
		f.mu.Unlock()
		if !f.pause(f.seconds(orDefaultNumber(g.HealthCheckIntervalSeconds, 30))) {
			return
		}
	}
}

// check asks a target whether it is well, as its group says.
func (f *Fake) check(g elb.TargetGroup, address netip.AddrPort) error {
	if port := aws.ToString(g.HealthCheckPort); port != "" && port != "traffic-port" {
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return fmt.Errorf("health check port %q: %w", port, err)
		}
		address = netip.AddrPortFrom(address.Addr(), uint16(number))
	}
	ctx, cancel := context.WithTimeout(f.ctx, time.Duration(orDefaultNumber(g.HealthCheckTimeoutSeconds, 10))*time.Second)
	defer cancel()
	if g.HealthCheckProtocol != elb.ProtocolEnumHttp {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp4", address.String())
		if err != nil {
			return err
		}
		return conn.Close()
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address.String()+orDefault(aws.ToString(g.HealthCheckPath), "/"), nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode < 200 || answer.StatusCode > 399 {
		return fmt.Errorf("status %d", answer.StatusCode)
	}
	return nil
}

// register puts a task that runs into its service's groups, once. The lock is held.
func (f *Fake) register(t *task) {
	if t.last != running || t.desired != running || len(t.targets) > 0 {
		return
	}
	for _, b := range t.service.in.LoadBalancers {
		if g := f.group(aws.ToString(b.TargetGroupArn)); g != nil {
			t.targets = append(t.targets, f.add(g, netip.AddrPortFrom(t.space.Address, uint16(aws.ToInt32(b.ContainerPort)))))
			f.event(t.service, "registered 1 targets in (target-group %s)", g.arn())
		}
	}
}

// targetsHealthy says whether all of a task's targets are, where its service has any. The lock is held.
func (t *task) targetsHealthy() bool {
	if len(t.targets) < len(t.service.in.LoadBalancers) {
		return false
	}
	return !slices.ContainsFunc(t.targets, func(t *target) bool { return t.state != healthy })
}

// leaveTargets takes a task out of its groups and, when the task can still serve, waits for the deregistration delay.
func (f *Fake) leaveTargets(t *task) {
	f.mu.Lock()
	targets := slices.Clone(t.targets)
	serves := t.stopCode == "ServiceSchedulerInitiated" || t.stopCode == "UserInitiated"
	if len(targets) > 0 && t.service != nil {
		f.event(t.service, "has begun draining connections on 1 tasks.")
	}
	for _, target := range targets {
		f.drain(target)
	}
	f.mu.Unlock()
	var wait sync.WaitGroup
	for _, target := range targets {
		if serves {
			wait.Go(func() { f.await(0, func() bool { return target.state == gone }) })
		}
	}
	wait.Wait()
}

// drain deregisters a target: no new connections; after the delay it is forgotten. The lock is held.
func (f *Fake) drain(t *target) {
	if t.state == draining || t.state == gone {
		return
	}
	t.state, t.reason = draining, elb.TargetHealthReasonEnumDeregistrationInProgress
	f.wake()
	delay, _ := strconv.ParseInt(t.group.attributes["deregistration_delay.timeout_seconds"], 10, 32) // was checked when it was set
	f.run(func() {
		f.pause(time.Duration(delay) * f.options.Drain)
		f.mu.Lock()
		defer f.mu.Unlock()
		t.state = gone
		t.group.targets = slices.DeleteFunc(t.group.targets, func(other *target) bool { return other == t })
		if t.group.attributes["deregistration_delay.connection_termination.enabled"] == "true" {
			for conn := range t.conns {
				conn.Close()
			}
		}
		f.wake()
	})
}

// pick chooses the target of a new connection: the next healthy one, or, when none is healthy, the next that is registered. The lock is held.
func (g *group) pick() *target {
	var good, rest []*target
	for _, t := range g.targets {
		if t.state == healthy {
			good = append(good, t)
		} else if t.state != draining && t.state != gone {
			rest = append(rest, t)
		}
	}
	if len(good) == 0 {
		good = rest
	}
	if len(good) == 0 {
		return nil
	}
	g.turn++
	return good[g.turn%len(good)]
}

// carry connects a client with a target.
func (f *Fake) carry(b *balancer, g *group, client net.Conn) {
	f.mu.Lock()
	t := g.pick()
	f.mu.Unlock()
	if t == nil {
		reset(client)
		return
	}
	dialer := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: b.address.AsSlice()}}
	onward, err := dialer.DialContext(f.ctx, "tcp4", t.address.String())
	if err != nil {
		f.options.Log("balancer %s: connect to %s: %v", b.dnsName(), t.address, err)
		reset(client)
		return
	}
	f.mu.Lock()
	t.conns[client], t.conns[onward] = true, true
	f.mu.Unlock()
	stop := context.AfterFunc(f.ctx, func() { client.Close(); onward.Close() })
	join(client, onward)
	stop()
	f.mu.Lock()
	delete(t.conns, client)
	delete(t.conns, onward)
	f.mu.Unlock()
}

// reset closes a connection so that the other side sees an error, not an end.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // at worst it ends without
	}
	conn.Close()
}

// serve accepts connections until the listener is closed, and waits for those it accepted.
func serve(l net.Listener, handle func(net.Conn)) {
	var wait sync.WaitGroup
	defer wait.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		wait.Go(func() { handle(conn) })
	}
}

// join copies between two connections, each direction until its end, and closes both. What one side aborted the
// other one sees aborted.
func join(a, b net.Conn) {
	var wait sync.WaitGroup
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		wait.Go(func() {
			from, to := pair[0], pair[1]
			if _, err := io.Copy(to, from); err != nil {
				reset(to)
				reset(from)
				return
			}
			if tcp, ok := to.(*net.TCPConn); ok {
				_ = tcp.CloseWrite() // it is closed altogether soon
			}
		})
	}
	wait.Wait()
	a.Close()
	b.Close()
}
