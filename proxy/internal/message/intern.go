package message

// Interner turns bytes into strings without an allocation when it has met them before: header names
// and most values repeat from request to request. It forgets in two generations, so that its memory
// is bounded whatever a client sends. The zero value is ready.
type Interner struct {
	young, old map[string]string
}

// Bounds of the table: what is longer is not worth keeping, and a generation holds so many texts.
const (
	maxInterned   = 128
	maxGeneration = 2048
)

// String is b as a string.
func (in *Interner) String(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if len(b) > maxInterned {
		return string(b)
	}
	if s, ok := in.young[string(b)]; ok {
		return s
	}
	s, ok := in.old[string(b)]
	if !ok {
		s = string(b)
	}
	if in.young == nil || len(in.young) >= maxGeneration {
		in.old, in.young = in.young, make(map[string]string, 64)
	}
	in.young[s] = s
	return s
}

// Name is b in lower case.
func (in *Interner) Name(b []byte) string {
	var lower [maxInterned]byte
	if len(b) > len(lower) {
		long := make([]byte, len(b))
		for i, c := range b {
			long[i] = toLower[c]
		}
		return string(long)
	}
	for i, c := range b {
		lower[i] = toLower[c]
	}
	return in.String(lower[:len(b)])
}

// Value is the value of a field. Credentials are not kept beyond their message.
func (in *Interner) Value(name string, b []byte) string {
	switch name {
	case "authorization", "proxy-authorization", "cookie", "set-cookie":
		return string(b)
	}
	return in.String(b)
}
