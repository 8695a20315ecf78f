//go:build !linux

package main

import "errors"

func yieldToAll() {}

func makeFIFO(string) error { return errors.ErrUnsupported }

func hangUp(int) error { return errors.ErrUnsupported }
