package main

import (
	"encoding/json"
	"io"
)

// write writes what was measured.
func (b *bench) write(stdout io.Writer) error {
	if b.Output == "json" {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "\t")
		return encoder.Encode(b.results)
	}
	return b.results.Text(stdout)
}
