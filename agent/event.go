package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"countersign.dev/mesh"
)

// maxEvent is the greatest length of one line of the watch stream in bytes. A Plan for a thousand
// upstreams with a hundred endpoints each is about half of it.
const maxEvent = 16 << 20

// ErrEvent says that the watch stream does not hold what it should.
var ErrEvent = errors.New("bad event from the server")

// event is api.Event with the Plan as it came, so that a Plan that this binary does not understand
// is told apart from a stream that is broken.
type event struct {
	Plan       json.RawMessage `json:"plan"`
	Bundle     string          `json:"bundle"`
	Issuer     string          `json:"issuer"`
	CRL        string          `json:"crl"`
	ServerTime time.Time       `json:"serverTime"`
}

// hasPlan tells whether the event carries news, or only shows that the server lives.
func (e *event) hasPlan() bool { return len(e.Plan) > 0 && string(e.Plan) != "null" }

// eventReader reads the watch stream: one JSON text a line, none longer than limit.
type eventReader struct {
	r     *bufio.Reader
	limit int
}

func newEventReader(r io.Reader) *eventReader {
	return &eventReader{r: bufio.NewReaderSize(r, 16<<10), limit: maxEvent}
}

// next reads one event. io.EOF is the stream's end between two events; other errors are the
// connection's, or wrap [ErrEvent].
func (r *eventReader) next() (*event, error) {
	line, err := r.line()
	if err != nil {
		return nil, err
	}
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEvent, err)
	}
	if e.ServerTime.IsZero() {
		return nil, fmt.Errorf("%w: it has no serverTime", ErrEvent)
	}
	return &e, nil
}

// line reads up to a newline without holding more than the limit.
func (r *eventReader) line() ([]byte, error) {
	var line []byte
	for {
		part, err := r.r.ReadSlice('\n')
		if len(line)+len(part) > r.limit {
			return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrEvent, r.limit)
		}
		switch {
		case err == nil:
			return append(line, part...), nil
		case errors.Is(err, bufio.ErrBufferFull):
			line = append(line, part...)
		case errors.Is(err, io.EOF) && len(line)+len(part) > 0:
			return nil, fmt.Errorf("%w: the stream ends within it: %w", ErrEvent, io.ErrUnexpectedEOF)
		default:
			return nil, err
		}
	}
}

// ErrPlan says that a Plan cannot be put in force here.
var ErrPlan = errors.New("unusable Plan")

// parsePlan reads a Plan and refuses versions that this binary does not know, before it looks at
// anything else in it.
func parsePlan(data []byte) (*mesh.Plan, error) {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPlan, err)
	}
	if head.Version != mesh.PlanVersion {
		return nil, fmt.Errorf("%w: it has version %d, and this binary knows version %d; install the server's version of countersign here",
			ErrPlan, head.Version, mesh.PlanVersion)
	}
	var plan mesh.Plan
	if err := json.Unmarshal(data, &plan); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPlan, err)
	}
	return &plan, nil
}
