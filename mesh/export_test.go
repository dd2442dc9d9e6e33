package mesh

// Internals that the tests look at.
var (
	MermaidText = mermaidText
	DotText     = dotText
	Anchor      = anchor
)
