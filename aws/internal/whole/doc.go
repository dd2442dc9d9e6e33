// Package whole holds the tests that run the program as it is against the doubles of AWS.
package whole
