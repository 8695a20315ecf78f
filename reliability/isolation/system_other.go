//go:build !linux

package isolation

import "errors"

func runFirst()     {}
func runSecond(int) {}
func runLast()      {}

func makeFIFO(string) error { return errors.ErrUnsupported }

func hangUp(int) error { return errors.ErrUnsupported }
