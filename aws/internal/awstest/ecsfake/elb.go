//go:build linux

package ecsfake

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	elbv2 "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

	"countersign.dev/aws/internal/awstest/ecsfake/shape"
)

// balancing are the calls of Elastic Load Balancing that the double knows.
var balancing = map[string]func(f *Fake, document any) (any, error){
	"CreateLoadBalancer":            query((*Fake).createLoadBalancer),
	"DescribeLoadBalancers":         query((*Fake).describeLoadBalancers),
	"ModifyLoadBalancerAttributes":  query((*Fake).modifyLoadBalancerAttributes),
	"CreateTargetGroup":             query((*Fake).createTargetGroup),
	"DescribeTargetGroups":          query((*Fake).describeTargetGroups),
	"ModifyTargetGroupAttributes":   query((*Fake).modifyTargetGroupAttributes),
	"DescribeTargetGroupAttributes": query((*Fake).describeTargetGroupAttributes),
	"CreateListener":                query((*Fake).createListener),
	"DescribeListeners":             query((*Fake).describeListeners),
	"RegisterTargets":               query((*Fake).registerTargets),
	"DeregisterTargets":             query((*Fake).deregisterTargets),
	"DescribeTargetHealth":          query((*Fake).describeTargetHealth),
	"DescribeSSLPolicies":           query((*Fake).describeSSLPolicies),
}

// query makes a call of a method that takes and gives the SDK's types. The lock is held while it works.
func query[In, Out any](method func(*Fake, *In) (*Out, error)) func(*Fake, any) (any, error) {
	return func(f *Fake, document any) (any, error) {
		in := new(In)
		if err := shape.Fill(in, document, "request"); err != nil {
			return nil, refuse("ValidationError", "%v", err)
		}
		return method(f, in)
	}
}

// serveBalancing answers one call of Elastic Load Balancing.
func (f *Fake) serveBalancing(w http.ResponseWriter, body []byte) {
	answer, err := f.callBalancing(body)
	w.Header().Set("Content-Type", "text/xml")
	if err != nil {
		refusal := &apiError{"InternalFailure", err.Error()}
		errors.As(err, &refusal)
		f.options.Log("elasticloadbalancing: %v", err)
		var message bytes.Buffer
		_ = xml.EscapeText(&message, []byte(refusal.message)) // a buffer takes everything
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>%s</RequestId></ErrorResponse>`, refusal.code, message.String(), hexID())
		return
	}
	_, _ = w.Write(answer) // the caller has gone away
}

// callBalancing decodes, carries out and encodes one call.
func (f *Fake) callBalancing(body []byte) ([]byte, error) {
	values, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, refuse("MalformedQueryString", "%v", err)
	}
	action := values.Get("Action")
	perform, known := balancing[action]
	if !known {
		return nil, unsupported("elasticloadbalancing:" + strconv.Quote(action))
	}
	document, err := shape.Form(values)
	if err != nil {
		return nil, refuse("ValidationError", "%v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out, err := perform(f, document)
	if err != nil {
		return nil, err
	}
	var answer bytes.Buffer
	fmt.Fprintf(&answer, "<%sResponse>", action)
	if err := shape.XML(&answer, action+"Result", out); err != nil {
		return nil, err
	}
	fmt.Fprintf(&answer, "<ResponseMetadata><RequestId>%s</RequestId></ResponseMetadata></%sResponse>", hexID(), action)
	return answer.Bytes(), nil
}

// createLoadBalancer makes a balancer with an address. Application Load Balancers are recorded, and carry nothing.
func (f *Fake) createLoadBalancer(in *elbv2.CreateLoadBalancerInput) (*elbv2.CreateLoadBalancerOutput, error) {
	name := aws.ToString(in.Name)
	switch {
	case !wellNamed(name) || len(name) > 32 || strings.Contains(name, "_"):
		return nil, refuse("ValidationError", "The load balancer name '%s' is not valid: up to 32 letters, digits and hyphens", name)
	case slices.ContainsFunc(f.balancers, func(b *balancer) bool { return aws.ToString(b.LoadBalancerName) == name }):
		return nil, refuse("DuplicateLoadBalancerName", "A load balancer with the same name '%s' exists", name)
	case len(in.Subnets)+len(in.SubnetMappings) == 0:
		return nil, refuse("ValidationError", "At least one subnet must be specified")
	case in.Type == elb.LoadBalancerTypeEnumGateway:
		return nil, unsupported("Gateway Load Balancers")
	}
	address, err := f.network.AddHost()
	if err != nil {
		return nil, err
	}
	kind, word := orDefault(string(in.Type), "application"), "app"
	if in.Type == elb.LoadBalancerTypeEnumNetwork {
		word = "net"
	}
	id := fmt.Sprintf("%016x", f.number())
	b := &balancer{address: address, attributes: map[string]string{}}
	b.LoadBalancer = elb.LoadBalancer{
		LoadBalancerName: in.Name, LoadBalancerArn: aws.String(f.arn("elasticloadbalancing", "loadbalancer/"+word+"/"+name+"/"+id)),
		DNSName: aws.String(name + "-" + id + ".elb." + f.options.Region + ".amazonaws.com"), CanonicalHostedZoneId: aws.String("Z3F0SRJ5LGBH90"),
		Scheme: elb.LoadBalancerSchemeEnum(orDefault(string(in.Scheme), "internet-facing")), Type: elb.LoadBalancerTypeEnum(kind), State: &elb.LoadBalancerState{Code: elb.LoadBalancerStateEnumActive},
		SecurityGroups: in.SecurityGroups, CreatedTime: aws.Time(time.Now()), VpcId: aws.String("vpc-0"), IpAddressType: elb.IpAddressTypeIpv4,
	}
	f.balancers = append(f.balancers, b)
	return &elbv2.CreateLoadBalancerOutput{LoadBalancers: []elb.LoadBalancer{b.LoadBalancer}}, nil
}

// balancerByARN finds a balancer. The lock is held.
func (f *Fake) balancerByARN(arn *string) (*balancer, error) {
	for _, b := range f.balancers {
		if aws.ToString(b.LoadBalancerArn) == aws.ToString(arn) {
			return b, nil
		}
	}
	return nil, refuse("LoadBalancerNotFound", "Load balancer '%s' not found", aws.ToString(arn))
}

// groupByARN finds a target group. The lock is held.
func (f *Fake) groupByARN(arn *string) (*group, error) {
	if g := f.group(aws.ToString(arn)); g != nil {
		return g, nil
	}
	return nil, refuse("TargetGroupNotFound", "Target group '%s' not found", aws.ToString(arn))
}

// describeLoadBalancers shows all, or those of names or ARNs.
func (f *Fake) describeLoadBalancers(in *elbv2.DescribeLoadBalancersInput) (*elbv2.DescribeLoadBalancersOutput, error) {
	out := &elbv2.DescribeLoadBalancersOutput{}
	for _, b := range f.balancers {
		if len(in.LoadBalancerArns)+len(in.Names) == 0 || slices.Contains(in.LoadBalancerArns, aws.ToString(b.LoadBalancerArn)) || slices.Contains(in.Names, aws.ToString(b.LoadBalancerName)) {
			out.LoadBalancers = append(out.LoadBalancers, b.LoadBalancer)
		}
	}
	if len(out.LoadBalancers) < len(in.LoadBalancerArns)+len(in.Names) {
		return nil, refuse("LoadBalancerNotFound", "One or more load balancers not found")
	}
	return out, nil
}

// modifyLoadBalancerAttributes notes attributes; none changes what the double does.
func (f *Fake) modifyLoadBalancerAttributes(in *elbv2.ModifyLoadBalancerAttributesInput) (*elbv2.ModifyLoadBalancerAttributesOutput, error) {
	b, err := f.balancerByARN(in.LoadBalancerArn)
	if err != nil {
		return nil, err
	}
	known := []string{"load_balancing.cross_zone.enabled", "deletion_protection.enabled", "access_logs.s3.enabled", "access_logs.s3.bucket", "access_logs.s3.prefix", "dns_record.client_routing_policy", "zonal_shift.config.enabled"}
	for _, attribute := range in.Attributes {
		if !slices.Contains(known, aws.ToString(attribute.Key)) {
			return nil, unsupported("the attribute " + aws.ToString(attribute.Key) + " of load balancers")
		}
		b.attributes[aws.ToString(attribute.Key)] = aws.ToString(attribute.Value)
	}
	return &elbv2.ModifyLoadBalancerAttributesOutput{Attributes: in.Attributes}, nil
}

// createTargetGroup makes a group of addresses.
func (f *Fake) createTargetGroup(in *elbv2.CreateTargetGroupInput) (*elbv2.CreateTargetGroupOutput, error) {
	name := aws.ToString(in.Name)
	switch {
	case !wellNamed(name) || len(name) > 32 || strings.Contains(name, "_"):
		return nil, refuse("ValidationError", "Target group name '%s' is not valid: up to 32 letters, digits and hyphens", name)
	case slices.ContainsFunc(f.groups, func(g *group) bool { return aws.ToString(g.TargetGroupName) == name }):
		return nil, refuse("DuplicateTargetGroupName", "A target group with the same name '%s' exists, but with different settings", name)
	case in.TargetType != elb.TargetTypeEnumIp:
		return nil, unsupported("target groups of the type " + string(in.TargetType) + ": tasks on Fargate need ip")
	case in.Protocol == "" || in.Port == nil:
		return nil, refuse("ValidationError", "A port and a protocol must be specified")
	case in.HealthCheckProtocol != "" && in.HealthCheckProtocol != elb.ProtocolEnumTcp && in.HealthCheckProtocol != elb.ProtocolEnumHttp:
		return nil, unsupported("health checks over " + string(in.HealthCheckProtocol))
	case in.HealthCheckEnabled != nil && !*in.HealthCheckEnabled:
		return nil, refuse("ValidationError", "Health check enabled must be true for target groups with target type 'ip'")
	}
	if in.HealthCheckIntervalSeconds != nil && (*in.HealthCheckIntervalSeconds < 5 || *in.HealthCheckIntervalSeconds > 300) {
		return nil, refuse("ValidationError", "Health check interval must be between 5 and 300 seconds")
	}
	g := &group{attributes: map[string]string{"deregistration_delay.timeout_seconds": "300", "deregistration_delay.connection_termination.enabled": "false"}}
	check := in.HealthCheckProtocol
	if check == "" {
		check = elb.ProtocolEnumTcp
	}
	g.TargetGroup = elb.TargetGroup{
		TargetGroupName: in.Name, TargetGroupArn: aws.String(f.arn("elasticloadbalancing", "targetgroup/"+name+"/"+fmt.Sprintf("%016x", f.number()))),
		Protocol: in.Protocol, Port: in.Port, TargetType: in.TargetType, VpcId: in.VpcId, HealthCheckEnabled: aws.Bool(true), HealthCheckProtocol: check,
		HealthCheckPort: aws.String(orDefault(aws.ToString(in.HealthCheckPort), "traffic-port")), HealthCheckPath: in.HealthCheckPath, Matcher: in.Matcher,
		HealthCheckIntervalSeconds: aws.Int32(orDefaultNumber(in.HealthCheckIntervalSeconds, 30)), HealthCheckTimeoutSeconds: aws.Int32(orDefaultNumber(in.HealthCheckTimeoutSeconds, 10)),
		HealthyThresholdCount: aws.Int32(orDefaultNumber(in.HealthyThresholdCount, 5)), UnhealthyThresholdCount: aws.Int32(orDefaultNumber(in.UnhealthyThresholdCount, 2)),
	}
	f.groups = append(f.groups, g)
	return &elbv2.CreateTargetGroupOutput{TargetGroups: []elb.TargetGroup{g.TargetGroup}}, nil
}

// describeTargetGroups shows all, or those of names, ARNs or a balancer.
func (f *Fake) describeTargetGroups(in *elbv2.DescribeTargetGroupsInput) (*elbv2.DescribeTargetGroupsOutput, error) {
	out := &elbv2.DescribeTargetGroupsOutput{}
	for _, g := range f.groups {
		shown := g.TargetGroup
		for _, b := range f.balancers {
			if slices.ContainsFunc(b.listeners, func(l *listener) bool { return l.group == g }) {
				shown.LoadBalancerArns = append(shown.LoadBalancerArns, aws.ToString(b.LoadBalancerArn))
			}
		}
		switch {
		case in.LoadBalancerArn != nil && !slices.Contains(shown.LoadBalancerArns, *in.LoadBalancerArn):
		case len(in.TargetGroupArns)+len(in.Names) > 0 && !slices.Contains(in.TargetGroupArns, g.arn()) && !slices.Contains(in.Names, aws.ToString(g.TargetGroupName)):
		default:
			out.TargetGroups = append(out.TargetGroups, shown)
		}
	}
	if len(out.TargetGroups) < len(in.TargetGroupArns)+len(in.Names) {
		return nil, refuse("TargetGroupNotFound", "One or more target groups not found")
	}
	return out, nil
}

// modifyTargetGroupAttributes sets how targets are deregistered.
func (f *Fake) modifyTargetGroupAttributes(in *elbv2.ModifyTargetGroupAttributesInput) (*elbv2.ModifyTargetGroupAttributesOutput, error) {
	g, err := f.groupByARN(in.TargetGroupArn)
	if err != nil {
		return nil, err
	}
	changed := maps.Clone(g.attributes)
	for _, attribute := range in.Attributes {
		key, value := aws.ToString(attribute.Key), aws.ToString(attribute.Value)
		wrong := false
		switch key {
		case "deregistration_delay.timeout_seconds":
			n, err := strconv.Atoi(value)
			wrong = err != nil || n < 0 || n > 3600
		case "deregistration_delay.connection_termination.enabled":
			wrong = value != "true" && value != "false"
		case "preserve_client_ip.enabled", "proxy_protocol_v2.enabled", "stickiness.enabled":
			// The double does none of them.
			wrong = value != "false"
		default:
			return nil, unsupported("the attribute " + key + " of target groups")
		}
		if wrong {
			return nil, refuse("ValidationError", "The attribute %s cannot be %q, or the double does not do it", key, value)
		}
		changed[key] = value
	}
	g.attributes = changed
	return &elbv2.ModifyTargetGroupAttributesOutput{Attributes: in.Attributes}, nil
}

// describeTargetGroupAttributes shows them.
func (f *Fake) describeTargetGroupAttributes(in *elbv2.DescribeTargetGroupAttributesInput) (*elbv2.DescribeTargetGroupAttributesOutput, error) {
	g, err := f.groupByARN(in.TargetGroupArn)
	if err != nil {
		return nil, err
	}
	out := &elbv2.DescribeTargetGroupAttributesOutput{}
	for _, key := range slices.Sorted(maps.Keys(g.attributes)) {
		out.Attributes = append(out.Attributes, elb.TargetGroupAttribute{Key: aws.String(key), Value: aws.String(g.attributes[key])})
	}
	return out, nil
}

// createListener opens a port of a balancer. Only TCP is carried; a listener that ends TLS or speaks HTTP is recorded.
func (f *Fake) createListener(in *elbv2.CreateListenerInput) (*elbv2.CreateListenerOutput, error) {
	b, err := f.balancerByARN(in.LoadBalancerArn)
	if err != nil {
		return nil, err
	}
	port := aws.ToInt32(in.Port)
	if port < 1 || port > 65535 {
		return nil, refuse("ValidationError", "A port between 1 and 65535 must be specified")
	}
	if in.SslPolicy != nil && policies[*in.SslPolicy] == nil {
		return nil, refuse("SSLPolicyNotFound", "SSL policy '%s' not found", *in.SslPolicy)
	}
	if slices.ContainsFunc(b.listeners, func(l *listener) bool { return aws.ToInt32(l.Port) == port }) {
		return nil, refuse("DuplicateListener", "A listener already exists on this port for this load balancer '%s'", aws.ToString(in.LoadBalancerArn))
	}
	if len(in.DefaultActions) != 1 || in.DefaultActions[0].Type != elb.ActionTypeEnumForward {
		return nil, unsupported("listeners that do not forward to one target group")
	}
	action := in.DefaultActions[0]
	arn := action.TargetGroupArn
	if c := action.ForwardConfig; arn == nil && c != nil && len(c.TargetGroups) == 1 {
		arn = c.TargetGroups[0].TargetGroupArn
	}
	g, err := f.groupByARN(arn)
	if err != nil {
		return nil, err
	}
	l := &listener{group: g}
	l.Listener = elb.Listener{
		ListenerArn:     aws.String(strings.Replace(aws.ToString(in.LoadBalancerArn), ":loadbalancer/", ":listener/", 1) + "/" + fmt.Sprintf("%016x", f.number())),
		LoadBalancerArn: in.LoadBalancerArn, Port: in.Port, Protocol: in.Protocol, SslPolicy: in.SslPolicy, Certificates: in.Certificates, AlpnPolicy: in.AlpnPolicy, DefaultActions: in.DefaultActions,
	}
	if b.Type == elb.LoadBalancerTypeEnumNetwork && in.Protocol == elb.ProtocolEnumTcp {
		l.socket, err = new(net.ListenConfig).Listen(f.ctx, "tcp4", netip.AddrPortFrom(b.address, uint16(port)).String())
		if err != nil {
			return nil, err
		}
		f.run(func() { serve(l.socket, func(conn net.Conn) { f.carry(b, g, conn) }) })
	}
	b.listeners = append(b.listeners, l)
	return &elbv2.CreateListenerOutput{Listeners: []elb.Listener{l.Listener}}, nil
}

// describeListeners shows a balancer's listeners, or those of ARNs.
func (f *Fake) describeListeners(in *elbv2.DescribeListenersInput) (*elbv2.DescribeListenersOutput, error) {
	if in.LoadBalancerArn != nil {
		if _, err := f.balancerByARN(in.LoadBalancerArn); err != nil {
			return nil, err
		}
	}
	out := &elbv2.DescribeListenersOutput{}
	for _, b := range f.balancers {
		for _, l := range b.listeners {
			if in.LoadBalancerArn != nil && aws.ToString(l.LoadBalancerArn) == *in.LoadBalancerArn || slices.Contains(in.ListenerArns, aws.ToString(l.ListenerArn)) {
				out.Listeners = append(out.Listeners, l.Listener)
			}
		}
	}
	return out, nil
}

// registerTargets adds addresses to a group.
func (f *Fake) registerTargets(in *elbv2.RegisterTargetsInput) (*elbv2.RegisterTargetsOutput, error) {
	g, err := f.groupByARN(in.TargetGroupArn)
	if err != nil {
		return nil, err
	}
	for _, description := range in.Targets {
		address, err := targetAddress(g, description)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(g.targets, func(t *target) bool { return t.address == address && t.state != draining }) {
			f.add(g, address)
		}
	}
	f.wake()
	return &elbv2.RegisterTargetsOutput{}, nil
}

// targetAddress reads a target's address; without a port it is the group's.
func targetAddress(g *group, description elb.TargetDescription) (netip.AddrPort, error) {
	ip, err := netip.ParseAddr(aws.ToString(description.Id))
	if err != nil || !ip.Is4() {
		return netip.AddrPort{}, refuse("ValidationError", "The IP address '%s' is not a valid IPv4 address", aws.ToString(description.Id))
	}
	return netip.AddrPortFrom(ip, uint16(orDefaultNumber(description.Port, aws.ToInt32(g.Port)))), nil
}

// deregisterTargets begins to drain addresses of a group.
func (f *Fake) deregisterTargets(in *elbv2.DeregisterTargetsInput) (*elbv2.DeregisterTargetsOutput, error) {
	g, err := f.groupByARN(in.TargetGroupArn)
	if err != nil {
		return nil, err
	}
	for _, description := range in.Targets {
		address, err := targetAddress(g, description)
		if err != nil {
			return nil, err
		}
		for _, t := range slices.Clone(g.targets) {
			if t.address == address {
				f.drain(t)
			}
		}
	}
	return &elbv2.DeregisterTargetsOutput{}, nil
}

// describeTargetHealth shows a group's targets.
func (f *Fake) describeTargetHealth(in *elbv2.DescribeTargetHealthInput) (*elbv2.DescribeTargetHealthOutput, error) {
	g, err := f.groupByARN(in.TargetGroupArn)
	if err != nil {
		return nil, err
	}
	out := &elbv2.DescribeTargetHealthOutput{}
	for _, t := range g.targets {
		if len(in.Targets) > 0 && !slices.ContainsFunc(in.Targets, func(d elb.TargetDescription) bool {
			address, err := targetAddress(g, d)
			return err == nil && address == t.address
		}) {
			continue
		}
		out.TargetHealthDescriptions = append(out.TargetHealthDescriptions, elb.TargetHealthDescription{
			Target:          &elb.TargetDescription{Id: aws.String(t.address.Addr().String()), Port: aws.Int32(int32(t.address.Port())), AvailabilityZone: aws.String(f.options.Region + "a")},
			HealthCheckPort: g.HealthCheckPort, TargetHealth: &elb.TargetHealth{State: t.state, Reason: t.reason},
		})
	}
	return out, nil
}

// policies are the versions of TLS that AWS's policies allow, by their names:
// https://docs.aws.amazon.com/elasticloadbalancing/latest/network/describe-ssl-policies.html.
var policies = func() map[string][]string {
	versions := []string{"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}
	all := map[string][]string{}
	add := func(allowed []string, names ...string) {
		for _, name := range names {
			all["ELBSecurityPolicy-"+name] = allowed
		}
	}
	add(versions[:3], "2015-05", "2016-08", "TLS-1-0-2015-04", "FS-2018-06")
	add(versions[1:3], "TLS-1-1-2017-01", "FS-1-1-2019-08")
	add(versions[2:3], "TLS-1-2-2017-01", "TLS-1-2-Ext-2018-06", "FS-1-2-2019-08", "FS-1-2-Res-2019-08", "FS-1-2-Res-2020-10")
	for _, of := range []string{"2021-06", "FIPS-2023-04", "PQ-2025-09", "FIPS-PQ-2025-09"} {
		add(versions, "TLS13-1-0-"+of)
		add(versions[2:], "TLS13-1-2-"+of, "TLS13-1-2-Res-"+of, "TLS13-1-2-Ext1-"+of, "TLS13-1-2-Ext2-"+of)
		add(versions[3:], "TLS13-1-3-"+of)
	}
	add(versions[1:], "TLS13-1-1-2021-06", "TLS13-1-1-FIPS-2023-04")
	add(versions[2:], "TLS13-1-2-Ext0-FIPS-2023-04", "TLS13-1-2-Ext0-FIPS-PQ-2025-09")
	return all
}()

// describeSSLPolicies shows policies by name, or all.
func (f *Fake) describeSSLPolicies(in *elbv2.DescribeSSLPoliciesInput) (*elbv2.DescribeSSLPoliciesOutput, error) {
	out := &elbv2.DescribeSSLPoliciesOutput{}
	names := in.Names
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(policies))
	}
	for _, name := range names {
		if policies[name] == nil {
			return nil, refuse("SSLPolicyNotFound", "SSL policy '%s' not found", name)
		}
		out.SslPolicies = append(out.SslPolicies, elb.SslPolicy{Name: aws.String(name), SslProtocols: policies[name]})
	}
	return out, nil
}
