package main

import (
	"reflect"
	"time"

	"github.com/alecthomas/kong"

	"countersign.dev/cmd/countersign/internal/flags"
)

// durations reads the times of flags: as Go does, and whole days, for the lives of certificates are reckoned in those.
func durations() kong.Option {
	return kong.TypeMapper(reflect.TypeFor[time.Duration](), kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
		token := ctx.Scan.Pop()
		text, ok := token.Value.(string)
		if !ok || !token.IsValue() {
			text = token.String() // another flag, or the end of the line
		}
		d, err := flags.Duration(text)
		if err == nil && !token.IsValue() {
			err = flags.NotDuration(text)
		}
		if err != nil {
			return err
		}
		target.SetInt(int64(d))
		return nil
	}))
}
