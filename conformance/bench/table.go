package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// machine says what this is run on.
func machine() string {
	// Not runtime.NumCPU: this process may use one core only.
	model, cores := runtime.GOARCH, 0
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				cores++
			}
		}
	}
	kernel := "Linux"
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel += " " + strings.TrimSpace(string(text))
	}
	nginx := "nginx"
	if path, err := find("nginx"); err == nil {
		out, _ := exec.Command(path, "-v").CombinedOutput()
		nginx = strings.TrimPrefix(strings.TrimSpace(string(out)), "nginx version: ")
	}
	busy := "unknown"
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		busy, _, _ = strings.Cut(string(text), " ")
	}
	return fmt.Sprintf("%s, %d cores, load average %s before, %s, %s, %s", model, cores, busy, kernel, runtime.Version(), nginx)
}

// median is the middle one of what f says of the samples.
func median(samples []sample, f func(sample) float64) float64 {
	v := make([]float64, len(samples))
	for i, s := range samples {
		v[i] = f(s)
	}
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// print prints one table for each question.
func (b *bench) print(results map[string][]sample) {
	for _, q := range b.questions() {
		rate, rateName := func(s sample) float64 { return float64(s.answers) / s.took.Seconds() / 1000 }, "1000 req/s"
		cost, costName := func(s sample) float64 { return float64(s.cpu.Microseconds()) / float64(s.answers) }, "CPU us/req"
		if q.blob {
			rate, rateName = func(s sample) float64 { return float64(s.bytes) / s.took.Seconds() / (1 << 30) }, "GiB/s"
			cost, costName = func(s sample) float64 { return s.cpu.Seconds() / (float64(s.bytes) / (1 << 30)) }, "CPU s/GiB"
		}
		fmt.Printf("%-38s %10s %8s %11s %8s %8s %8s\n", q.name, rateName, "x nginx", costName, "x nginx", "p50 ms", "p99 ms")
		base := results[q.name+"/nginx"]
		for _, s := range b.servers {
			got := results[q.name+"/"+s.name]
			r, c := median(got, rate), median(got, cost)
			fmt.Printf("  %-36s %10.2f %8.2f %11.3f %8.2f %8.2f %8.2f\n", s.name, r, r/median(base, rate), c, c/median(base, cost),
				median(got, func(s sample) float64 { return ms(s.p50) }), median(got, func(s sample) float64 { return ms(s.p99) }))
		}
		fmt.Println()
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
