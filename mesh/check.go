package mesh

// checker finds what is wrong with a specification whose parts are all well formed.
type checker struct {
	*report
	spec *Spec
	root *value
}

func (c checker) check() {
}
