// Package ecsfake is a double of Amazon ECS on Fargate and of Network Load Balancers that really runs what it
// is told: a task's containers are processes of this machine, each in namespaces of its own (package jail), its
// secrets are fetched by its execution role, its role's credentials and the task metadata are served inside,
// its services are rolled out with health checks, circuit breaker and rollback, and its balancers carry bytes.
//
// It speaks the wire protocols, so that the SDK's clients work with it as they are. What it does not do it
// refuses by name. The differences that are meant: one Availability Zone, one /16, no security groups, no image
// registry (Options.Images says what an image's name stands for), no limits on CPU and memory, logs that are kept here
// instead of in log groups, and times that AWS counts in seconds last Options.Second each. Where those are short, a
// machine that is busy looks like a task that is ill: give services a grace period and health checks some retries.
//
// A program that uses it calls Enter first, from TestMain or main: it then stands in a network of its own, in which it
// reaches tasks and balancers by their addresses, and so do the programs that it starts. What uses it needs the build
// constraint linux.
package ecsfake
