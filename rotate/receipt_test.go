package rotate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"countersign.dev/secret"
)

// receipts is an authority that answers in two parts: first a receipt, then, when it is shown that, the certificate.
type receipts struct {
	*authority
	shown []string
	fail  error  // after the receipt was kept
	long  string // a receipt that is too long
}

func (a *receipts) Issue(ctx context.Context, request Request) ([]byte, error) {
	a.shown = append(a.shown, request.Receipt)
	receipt := "arn:" + request.ID
	if request.Receipt == "" {
		if err := request.Keep(ctx, receipt+a.long); err != nil {
			return nil, err
		}
		if a.fail != nil {
			return nil, a.fail
		}
	} else if request.Receipt != receipt {
		return nil, errors.New("the receipt is of another request")
	}
	return a.authority.Issue(ctx, request)
}

// TestReceipt shows an authority what it gave to be kept, under the same request and no other.
func TestReceipt(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.config.Authority = nil
	a := &receipts{authority: w.authority, fail: errors.New("still in progress")}
	w.target.Authority = a
	says(t, w.must(Options{}, Failed).Error, "still in progress")
	a.fail = nil
	w.first()
	if len(a.shown) != 2 || !strings.HasPrefix(a.shown[1], "arn:") {
		t.Errorf("%q were shown", a.shown)
	}
	w.must(Options{Force: true}, Rotated)
	if len(a.shown) != 3 || a.shown[2] != "" {
		t.Errorf("%q were shown", a.shown)
	}
	a.long = strings.Repeat("x", MaxReceipt)
	if result := w.must(Options{Force: true}, Failed); !errors.Is(result.Err, secret.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", result.Err)
	}
	a.long = ""
	w.first()
	w.check()
}

// TestReceiptStopped stops in the middle of a question, with the receipt, when the process is to end.
func TestReceiptStopped(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := &receipts{authority: w.authority}
	w.target.Authority = issuer{a, func(ctx context.Context, request Request) error {
		cancel()
		<-ctx.Done()
		// What was paid for is kept all the same.
		return errors.Join(ctx.Err(), request.Keep(ctx, "arn:"+request.ID))
	}}
	result := w.rotator().Rotate(ctx, w.target, Options{})
	if !errors.Is(result.Err, ErrStopped) {
		t.Errorf("%v, want ErrStopped", result.Err)
	}
	w.target.Authority = a
	w.first()
	if len(a.shown) != 1 || a.shown[0] == "" {
		t.Errorf("%q were shown", a.shown)
	}
	w.check()
}

// issuer is an authority with another way to issue.
type issuer struct {
	Authority
	issue func(context.Context, Request) error
}

func (i issuer) Issue(ctx context.Context, request Request) ([]byte, error) {
	return nil, i.issue(ctx, request)
}

// TestAuthorities takes roots from all authorities of those who share a bundle, each once.
func TestAuthorities(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	second := newHierarchy(t, "second")
	carts := w.target
	carts.Workload.Name, carts.Secret, carts.Certificate.Authority = "carts", "shop/carts", "acm"
	carts.Authority = &authority{t: t, signer: second, bundle: []*hierarchy{second, w.authority.signer}, answers: map[string][]byte{}}
	results := w.rotator().RotateAll(t.Context(), []Target{w.target, carts}, Options{NoDeploy: true})
	for _, result := range results {
		if result.Err != nil {
			t.Errorf("%s: %v", result.Secret, result.Err)
		}
	}
	if got := slices.Sorted(slices.Values(w.bundle())); !slices.Equal(got, []string{"first root", "second root"}) {
		t.Error(got)
	}
}
