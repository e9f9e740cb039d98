package main

import "fmt"

// growing is what the scenario "growth" lets grow, with its values.
type growing struct {
	name   string
	unit   string // of the values
	values []int
	// floor says that the floor can do it too.
	floor bool
	load  func(w *world, value int) load
}

// grown are all of them. What is fewer than the usual number of messages keeps a run short
// and the broker's memory free.
func grown() []growing {
	const usually, size = 20_000, 400
	return []growing{
		{"pollers", "pollers", []int{1, 2, 4, 8, 16, 32}, true, func(w *world, v int) load {
			l := w.one(usually, size)
			l.pollers = v
			return l
		}},
		{"body", "bytes", []int{100, 400, 1 << 10, 4 << 10, 16 << 10, 64 << 10}, true, func(w *world, v int) load {
			const most = 128 << 20 // bytes
			return w.one(min(usually, most/v), v)
		}},
		{"sinks", "sinks", []int{1, 2, 4, 8}, false, func(w *world, v int) load {
			l := w.one(usually, size)
			l.sinks = v
			return l
		}},
		{"sources", "sources", []int{1, 10, 50, 200}, false, func(w *world, v int) load {
			l := w.one(2*usually, size)
			l.sources, l.pollers = v, 0
			return l
		}},
		{"replicas", "processes", []int{1, 2, 3, 4}, true, func(w *world, v int) load {
			l := w.one(usually, size)
			l.replicas = v
			return l
		}},
	}
}

// growth is a contest for each value of everything that grows.
func (w *world) growth() (all []*contest) {
	for _, g := range grown() {
		for _, v := range g.values {
			c := contest{
				Scenario: "growth: " + g.name, What: fmt.Sprintf("%d %s", v, g.unit), At: float64(v),
				contenders: []string{theRelay},
			}
			if g.floor {
				c.contenders, c.against = []string{floor, theRelay}, []string{floor}
			}
			all = append(all, w.racing(c, g.load(w, v), nil))
		}
	}
	return all
}
