package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"countersign.dev/aws/secretsmanager"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
	"countersign.dev/secret"
	"countersign.dev/secret/filestore"
)

// anyStore is an open secret store, whatever it lies on.
type anyStore struct {
	rotate.Store
	rotate.Keeper
	lister
}

// FewWrites implements [rotate.Thrifty]: that of the store is not among the methods that it is kept by.
func (s *anyStore) FewWrites() bool {
	thrifty, ok := s.Store.(rotate.Thrifty)
	return ok && thrifty.FewWrites()
}

// lister lists the secrets of a store. Damaged ones are in the error, and the others are listed all the same.
type lister interface {
	List(ctx context.Context) ([]secret.Entry, error)
}

// openStore opens a store as a specification declares it.
func openStore(ctx context.Context, declared mesh.Store) (*anyStore, error) {
	switch declared.Type {
	case mesh.StoreFile:
		identity, err := filestore.LoadIdentity(declared.IdentityFile)
		if err != nil {
			return nil, err
		}
		store, err := filestore.Open(declared.Dir, identity)
		if err != nil {
			return nil, err
		}
		return &anyStore{store, keeper[*filestore.Lease]{store}, store}, nil
	case mesh.StoreSecretsManager:
		store, err := secretsmanager.Open(ctx, secretsmanager.Config{Region: declared.Region, Endpoint: declared.Endpoint, KMSKey: declared.KMSKey})
		if err != nil {
			return nil, err
		}
		return &anyStore{store, store.Keeper(), store}, nil
	default:
		return nil, fmt.Errorf("stores of the type %q are not known to this version of countersign", declared.Type)
	}
}

// placeOf says to people where a store is.
func placeOf(declared mesh.Store) string {
	if declared.Type == mesh.StoreFile {
		return declared.Dir
	}
	return strings.TrimSuffix(declared.Type+":"+declared.Region, ":")
}

// leasing is a store whose leases are of a type of its own.
type leasing[L rotate.Lease] interface {
	Remove(ctx context.Context, name, version string) error
	Lease(ctx context.Context, name, holder string, ttl time.Duration) (L, error)
	EndLease(ctx context.Context, name, holder string) error
	Holder(ctx context.Context, name string) (holder string, until time.Time, err error)
}

// keeper gives leases as package rotate declares them.
type keeper[L rotate.Lease] struct{ leasing[L] }

// Lease implements [rotate.Keeper].
func (k keeper[L]) Lease(ctx context.Context, name, holder string, ttl time.Duration) (rotate.Lease, error) {
	lease, err := k.leasing.Lease(ctx, name, holder, ttl)
	if err != nil {
		return nil, err // an interface that holds a nil lease is not nil
	}
	return lease, nil
}
