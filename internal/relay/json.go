package relay

import (
	"encoding/binary"
	"math/bits"
)

// maxJSONDepth is how deep arrays and objects may lie in each other, as in encoding/json.
const maxJSONDepth = 10_000

// isJSON tells what encoding/json.Valid does, in a fifth of the time for short texts and less
// for long ones: every message is looked at, and of a body of 64 KiB that was half of all work.
func isJSON(b []byte) bool {
	var few [64]byte
	open := few[:0] // the brackets around i
	i := skipSpace(b, 0)
	for {
		// A value begins at i.
		if i == len(b) {
			return false
		}
		ok := true
		switch c := b[i]; c {
		case '{', '[':
			if len(open) == maxJSONDepth {
				return false
			}
			i = skipSpace(b, i+1)
			if i == len(b) {
				return false
			}
			if b[i] == c+2 { // the closing one, in ASCII
				i++
				break
			}
			open = append(open, c)
			if c == '[' {
				continue
			}
			if i, ok = skipKey(b, i); !ok {
				return false
			}
			continue
		case '"':
			i, ok = skipString(b, i+1)
		case 't':
			i, ok = skipLiteral(b, i, "true")
		case 'f':
			i, ok = skipLiteral(b, i, "false")
		case 'n':
			i, ok = skipLiteral(b, i, "null")
		default:
			i, ok = skipNumber(b, i)
		}
		if !ok {
			return false
		}
		// A value has ended before i: so may what is around it.
		for {
			i = skipSpace(b, i)
			if len(open) == 0 {
				return i == len(b)
			}
			if i == len(b) {
				return false
			}
			around := open[len(open)-1]
			if b[i] == around+2 {
				open = open[:len(open)-1]
				i++
				continue
			}
			if b[i] != ',' {
				return false
			}
			i = skipSpace(b, i+1)
			if around == '{' {
				if i, ok = skipKey(b, i); !ok {
					return false
				}
			}
			break
		}
	}
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// skipKey passes over a name, its colon and the space after it.
func skipKey(b []byte, i int) (int, bool) {
	if i == len(b) || b[i] != '"' {
		return i, false
	}
	i, ok := skipString(b, i+1)
	if !ok {
		return i, false
	}
	i = skipSpace(b, i)
	if i == len(b) || b[i] != ':' {
		return i, false
	}
	return skipSpace(b, i+1), true
}

// skipString passes over the rest of a string, its quote included.
func skipString(b []byte, i int) (int, bool) {
	for {
		i = skipUsual(b, i)
		if i == len(b) || b[i] < ' ' {
			return i, false
		}
		if b[i] == '"' {
			return i + 1, true
		}
		if b[i] != '\\' {
			i++
			continue
		}
		if i+1 == len(b) {
			return i, false
		}
		switch b[i+1] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			i += 2
		case 'u':
			if len(b)-i < 6 || !isHex(b[i+2]) || !isHex(b[i+3]) || !isHex(b[i+4]) || !isHex(b[i+5]) {
				return i, false
			}
			i += 6
		default:
			return i, false
		}
	}
}

// skipUsual passes over bytes of a string that mean themselves, eight at a time. It may stop
// before one of those.
func skipUsual(b []byte, i int) int {
	const each, top = 0x0101010101010101, 0x8080808080808080
	for len(b)-i >= 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		quotes, slashes := w^('"'*each), w^('\\'*each)
		// A byte that is zero, or less than a space, borrows; only those above the first that
		// does are not told right, and what comes first is what counts.
		found := ((quotes-each)&^quotes | (slashes-each)&^slashes | (w-' '*each)&^w) & top
		if found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
		i += 8
	}
	return i
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func skipLiteral(b []byte, i int, literal string) (int, bool) {
	if len(b)-i < len(literal) || string(b[i:i+len(literal)]) != literal {
		return i, false
	}
	return i + len(literal), true
}

func skipNumber(b []byte, i int) (int, bool) {
	if b[i] == '-' {
		i++
	}
	whole := i
	i = skipDigits(b, i)
	if i == whole || b[whole] == '0' && i > whole+1 {
		return i, false
	}
	if i < len(b) && b[i] == '.' {
		fraction := i + 1
		if i = skipDigits(b, fraction); i == fraction {
			return i, false
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		exponent := i
		if i = skipDigits(b, exponent); i == exponent {
			return i, false
		}
	}
	return i, true
}

func skipDigits(b []byte, i int) int {
	for i < len(b) && b[i] >= '0' && b[i] <= '9' {
		i++
	}
	return i
}
