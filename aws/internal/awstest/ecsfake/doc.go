// Package ecsfake is a double of Amazon ECS on Fargate and of Network Load Balancers that really runs what it
// is told: a task's containers are processes of this machine, each in namespaces of its own (package jail), its
// secrets are fetched by its execution role, its role's credentials and the task metadata are served inside,
// its services are rolled out with health checks, circuit breaker and rollback, and its balancers carry bytes.
//
// It speaks the wire protocols, so that the SDK's clients work with it as they are. What it does not do it
// refuses by name. The differences that are meant: one Availability Zone, one /16, no security groups, no image
// registry (Options.Images says what an image's name stands for), and times that AWS counts in seconds last
// Options.Second each.
package ecsfake
