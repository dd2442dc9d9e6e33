package main

import "testing"

// The pages about a mesh on ECS: their commands that need no account of AWS are run, and print what the pages say.

func TestECSPage(t *testing.T) { runPage(t, "ecs.md", 2) }

func TestFargatePage(t *testing.T) { runPage(t, "secrets-manager-to-nginx-on-fargate.md", 2) }

func TestWhoReadsKeysPage(t *testing.T) { runPage(t, "who-reads-keys.md", 2) }

func TestRotationFunctionPage(t *testing.T) { runPage(t, "rotation-function.md", 1) }
