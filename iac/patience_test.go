package iac_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"countersign.dev/iac"
)

// TestPatience asserts that a balancer sends nobody to an application that starts behind its proxy for as long as ECS waits for it: the
// balancer sees the proxy only. Where the application is there first, it does not wait.
func TestPatience(t *testing.T) {
	number := func(value any) int {
		n, err := strconv.Atoi(fmt.Sprint(value))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for name, write := range variants(t) {
		t.Run(name, func(t *testing.T) {
			s := readStack(t, write(iac.CloudFormation))
			groups, tasks := s.of("AWS::ElasticLoadBalancingV2::TargetGroup"), s.of("AWS::ECS::TaskDefinition")
			for id, service := range s.of("AWS::ECS::Service") {
				longest := 0 // that ECS waits for an application behind its proxy, in seconds
				for _, c := range all(tasks[fmt.Sprint(at(service["TaskDefinition"], "Ref"))]["ContainerDefinitions"]) {
					if check := at(c, "HealthCheck"); at(c, "Name") == "app" && strings.Contains(fmt.Sprint(at(c, "DependsOn")), "proxy") && check != nil {
						longest = number(at(check, "StartPeriod")) + number(at(check, "Retries"))*number(at(check, "Interval")) + number(at(check, "Timeout"))
					}
				}
				for _, b := range all(service["LoadBalancers"]) {
					group := groups[fmt.Sprint(at(b, "TargetGroupArn", "Ref"))]
					looks, interval := number(group["HealthyThresholdCount"]), number(group["HealthCheckIntervalSeconds"])
					if (looks-1)*interval < longest || longest == 0 && looks != 2 || looks > 10 {
						t.Errorf("%s: %d looks, one every %d s, and ECS waits %d s for the application", id, looks, interval, longest)
					}
				}
			}
		})
	}
}
