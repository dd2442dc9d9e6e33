package iam

import "strings"

// arnParts are the parts of an ARN: arn, partition, service, region, account, resource. The last one may hold colons.
const arnParts = 6

// A wildcard that is meant as a character, until it has been compared; no ARN or name holds these.
const (
	literalStar = "\x00"
	literalMark = "\x01"
)

var literal = strings.NewReplacer("*", literalStar, "?", literalMark)

// match compares with * for any characters and ? for one.
func match(pattern, value string) bool {
	// Where to go on after the last *: there is never a need to go back behind it.
	star, from := -1, 0
	p, v := 0, 0
	for v < len(value) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, v
			p++
		case p < len(pattern) && (pattern[p] == '?' || same(pattern[p], value[v])):
			p++
			v++
		case star >= 0:
			from++
			p, v = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

func same(pattern, value byte) bool {
	switch pattern {
	case literalStar[0]:
		return value == '*'
	case literalMark[0]:
		return value == '?'
	default:
		return pattern == value
	}
}

// matchARN compares part by part, so that a wildcard in one part never reaches into the next.
func matchARN(pattern, value string) bool {
	patterns, values := strings.SplitN(pattern, ":", arnParts), strings.SplitN(value, ":", arnParts)
	if len(patterns) != arnParts || len(values) != arnParts {
		return false
	}
	for i, p := range patterns {
		if !match(p, values[i]) {
			return false
		}
	}
	return true
}

// matchResource is matchARN, and * for everything; only that matches a request that names no resource.
func matchResource(pattern, value string) bool {
	return pattern == "*" || value != "*" && matchARN(pattern, value)
}
