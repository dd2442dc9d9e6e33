package supervise

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
)

// entry is what is read of a line of either program's access log. The texts are parts of the line.
type entry struct {
	listener, direction, remote []byte
	caller, serial, tls, verify []byte // caller is a SPIFFE ID or a subject
	admitted                    []byte // nil where the line does not say
	status                      int
	upstream, upstreamStatus    []byte
	end                         []byte // HAProxy's termination state
	// Of a connection that failed before there was anything else to say.
	failed                     bool
	tlsError, certificateError []byte
}

// errLine says that a line is not as the rendered log formats have it.
var errLine = errors.New("that is no line of an access log")

// parseEntry reads a line: an object of texts and numbers.
func parseEntry(line []byte) (*entry, error) {
	e := new(entry)
	err := scan(line, func(key, value []byte) {
		if text := string(value); text == "-" || text == "-:-" { // HAProxy's word for nothing
			value = value[:0]
		}
		switch string(key) {
		case "listener":
			e.listener = value
		case "direction":
			e.direction = value
		case "remote":
			e.remote = value
		case "caller", "subject":
			e.caller = value
		case "peerSerial":
			e.serial = value
		case "tls":
			e.tls = value
		case "verify":
			e.verify = value
		case "admitted":
			e.admitted = append([]byte{}, value...)
		case "status":
			e.status = number(value)
		case "upstream":
			e.upstream = value
		case "upstreamStatus":
			e.upstreamStatus = value
		case "end":
			e.end = value
		case "tlsError":
			e.failed, e.tlsError = true, value
		case "certificateError":
			e.certificateError = value
		}
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// number is what a text of digits means, 0 when it is none.
func number(text []byte) int {
	n := 0
	for _, c := range text {
		if c < '0' || c > '9' || n > 1<<30 {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// scan reads a JSON object that holds no other. Both programs are as quick as this is: it looks at each byte once,
// and a busy proxy writes tens of thousands of lines in a second.
func scan(line []byte, found func(key, value []byte)) error {
	rest := bytes.TrimSpace(line)
	if len(rest) < 2 || rest[0] != '{' || rest[len(rest)-1] != '}' {
		return errLine
	}
	rest = rest[1 : len(rest)-1]
	for first := true; ; first = false {
		rest = bytes.TrimLeft(rest, " \t")
		if len(rest) == 0 {
			if first {
				return nil
			}
			return errLine
		}
		key, after, ok := text(rest)
		if !ok {
			return errLine
		}
		after = bytes.TrimLeft(after, " \t")
		if len(after) == 0 || after[0] != ':' {
			return errLine
		}
		after = bytes.TrimLeft(after[1:], " \t")
		var value []byte
		if len(after) > 0 && after[0] == '"' {
			value, after, ok = text(after)
		} else {
			value, after, ok = token(after)
		}
		if !ok {
			return errLine
		}
		found(key, value)
		after = bytes.TrimLeft(after, " \t")
		if len(after) == 0 {
			return nil
		}
		if after[0] != ',' {
			return errLine
		}
		rest = after[1:]
	}
}

// text reads a quoted text.
func text(b []byte) (value, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return nil, nil, false
	}
	escaped := false
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			if !escaped {
				return b[1:i], b[i+1:], true
			}
			var plain string
			if json.Unmarshal(b[:i+1], &plain) != nil {
				return nil, nil, false
			}
			return []byte(plain), b[i+1:], true
		}
	}
	return nil, nil, false
}

// token reads a number, or null; HAProxy writes nothing at all for some of them.
func token(b []byte) (value, rest []byte, ok bool) {
	i := bytes.IndexByte(b, ',')
	if i < 0 {
		i = len(b)
	}
	value = bytes.TrimSpace(b[:i])
	return value, b[i:], !bytes.ContainsAny(value, "\"{}[]:\\")
}

// mostLine is the longest line that is read: a path of 32 KB, all of it escaped, and then some.
const mostLine = 256 << 10

// readLog takes in what the program writes on its standard output.
func (s *Supervisor) readLog(r io.Reader) {
	lines := bufio.NewReaderSize(r, mostLine)
	for {
		line, err := lines.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) { // too long: none of it is used
			if _, err = lines.ReadSlice('\n'); err == nil {
				line = nil
			}
		}
		if err != nil {
			return
		}
		if len(line) == 0 || line[0] != '{' {
			if words := strings.TrimSpace(string(line)); words != "" && s.log.Enabled(s.work, slog.LevelDebug) {
				s.log.Debug("the program says", "text", redact(words))
			}
			continue
		}
		if e, err := parseEntry(line); err == nil && s.counts.take(e, s.cfg.Now()) {
			s.lines.Add(func(b []byte) []byte { return append(b, line...) })
		}
	}
}
