// Package deployed puts a mesh on the doubles of AWS as its generated template says: the doubles, the template, the stack, and
// the program as a role runs it. The tests of the whole and the example that starts on this machine share it.
package deployed
