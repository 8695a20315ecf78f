package settings

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// unitBytes is the tag unit of sizes.
const unitBytes = "bytes"

type sizeUnit struct {
	name  string
	bytes int64
}

// sizeUnits are the units that a size may have. Letters alone, as in 64K, are not among them, because they mean 1000 to
// some and 1024 to others.
var sizeUnits = []sizeUnit{
	{"B", 1},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"PB", 1e15},
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"PiB", 1 << 50},
}

// ParseSize reads a size in bytes that may have a unit, such as 64KiB or 2MB.
func ParseSize(text string) (int64, error) {
	plain, err := plainSize(text)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(plain, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return 0, fmt.Errorf("%q is out of range", text)
	}
	if err != nil {
		return 0, fmt.Errorf("%q is not a size: want a number, and perhaps one of the units %s", text, unitNames())
	}
	return n, nil
}

// plainSize takes the unit off a size such as 512MiB. What is no number with letters after it is returned as it is.
func plainSize(text string) (string, error) {
	end := strings.LastIndexAny(text, "0123456789") + 1
	if end == 0 || end == len(text) {
		return text, nil
	}
	number, name := text[:end], strings.TrimLeft(text[end:], " ")
	n, err := strconv.ParseInt(number, 10, 64)
	if errors.Is(err, strconv.ErrSyntax) {
		return "", fmt.Errorf("%q is not a whole number with a unit", text)
	}
	i := slices.IndexFunc(sizeUnits, func(u sizeUnit) bool { return strings.EqualFold(u.name, name) })
	if i < 0 {
		return "", fmt.Errorf("%q is not a size: the units are %s", text, unitNames())
	}
	unit := sizeUnits[i].bytes
	if err != nil || n > math.MaxInt64/unit || n < math.MinInt64/unit {
		return "", fmt.Errorf("%q is out of range", text)
	}
	return strconv.FormatInt(n*unit, 10), nil
}

func unitNames() string {
	names := make([]string, 0, len(sizeUnits))
	for _, u := range sizeUnits {
		names = append(names, u.name)
	}
	return strings.Join(names, ", ")
}

// sizeText writes a size with the greatest binary unit of which it is a whole number.
func sizeText(n int64) string {
	for _, u := range slices.Backward(sizeUnits) {
		if strings.HasSuffix(u.name, "iB") && n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}
