package wan

import (
	"fmt"
	"strings"
	"time"
)

// barWidth is how many characters the longest bar has.
const barWidth = 50

// Table is rows under a head, in columns: the first to the left, the others to
// the right.
func Table(head []string, rows ...[]string) string {
	width := make([]int, len(head))
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	var b strings.Builder
	line := func(row []string) {
		for i, cell := range row {
			if i == 0 {
				fmt.Fprintf(&b, "%-*s", width[i], cell)
			} else {
				fmt.Fprintf(&b, "  %*s", width[i], cell)
			}
		}
		b.WriteByte('\n')
	}
	line(head)
	for _, row := range rows {
		line(row)
	}
	return b.String()
}

// A Bar is one bar of a chart.
type Bar struct {
	Name  string
	Value float64
	// Mark is drawn as a "|" where it is, a limit for instance; 0: none.
	Mark float64
}

// Bars is a chart of bars, from 0 on, with their values and a unit.
func Bars(unit string, bars ...Bar) string {
	most, width := 0.0, 0
	for _, bar := range bars {
		most, width = max(most, bar.Value, bar.Mark), max(width, len(bar.Name))
	}
	var b strings.Builder
	for _, bar := range bars {
		at := func(v float64) int {
			if most == 0 {
				return 0
			}
			return int(v/most*barWidth + 0.5)
		}
		cells := []byte(strings.Repeat(" ", barWidth+1))
		for i := range max(0, at(bar.Value)) {
			cells[i] = '#'
		}
		if bar.Mark > 0 {
			cells[at(bar.Mark)] = '|'
		}
		fmt.Fprintf(&b, "%-*s  %s %.1f %s\n", width, bar.Name, strings.TrimRight(string(cells), " "), bar.Value, unit)
	}
	return b.String()
}

// Milliseconds is d for a table.
func Milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f", MS(d)) }

// MS is d in milliseconds.
func MS(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
