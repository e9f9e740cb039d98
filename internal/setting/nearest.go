package setting

import "slices"

// Nearest gives the candidate that a slip of the hand turns word into: the one with
// the fewest letters inserted, deleted, replaced or swapped, if they are few enough
// for its length.
func Nearest(word string, candidates []string) (string, bool) {
	best, bestDistance := "", 0
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		limit := max(1, (max(len(word), len(c))+2)/3)
		if d := distance(word, c); d <= limit && d < max(len(word), len(c)) && (best == "" || d < bestDistance) {
			best, bestDistance = c, d
		}
	}
	return best, best != ""
}

// distance is that of Damerau and Levenshtein, with adjacent letters swapped once.
func distance(a, b string) int {
	// Rows of the table: two before, the one before, the present one.
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
