package npm

import (
	"fmt"
	"testing"
	"time"
)

func TestBasesReplaceTheIdle(t *testing.T) {
	start := time.Now()
	host := func(i int) string { return fmt.Sprintf("http://host-%d.example/npm", i) }
	full := func() *bases {
		b := &bases{}
		for i := range maxBases {
			if !b.keeps(host(i), start.Add(time.Duration(i)*time.Second)) {
				t.Fatalf("host %d of %d is not kept", i, maxBases)
			}
		}
		return b
	}
	last := (maxBases - 1) * time.Second
	for _, c := range []struct {
		name  string
		after time.Duration // start
		use   []int         // are called at last
		base  string
		want  bool
		gone  int // who is not known any more; negative: nobody
	}{
		{"one that is known", last, nil, host(5), true, -1},
		{"nobody is idle", last, nil, "http://new.example/npm", false, -1},
		{"almost idle", baseIdle - 1, nil, "http://new.example/npm", false, -1},
		{"the first is idle", baseIdle, nil, "http://new.example/npm", true, 0},
		{"the first was used since", baseIdle + time.Second, []int{0}, "http://new.example/npm", true, 1},
		{"and the new oldest is not idle", baseIdle, []int{0}, "http://new.example/npm", false, -1},
		{"all are idle", last + baseIdle, []int{}, "http://new.example/npm", true, 0},
		{"the clock went back", -time.Hour, nil, "http://new.example/npm", false, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := full()
			for _, i := range c.use {
				b.keeps(host(i), start.Add(last))
			}
			if got := b.keeps(c.base, start.Add(c.after)); got != c.want {
				t.Errorf("kept: %v", got)
			}
			for i := range maxBases {
				if _, ok := b.used[host(i)]; ok == (i == c.gone) {
					t.Errorf("host %d: known is %v", i, ok)
				}
			}
			if len(b.used) != maxBases {
				t.Errorf("%d bases", len(b.used))
			}
		})
	}
}

func TestInventedHostsAreForgotten(t *testing.T) {
	b, now := &bases{}, time.Now()
	for i := range 10 * maxBases {
		b.keeps(fmt.Sprintf("http://invented-%d.example", i), now)
	}
	if b.keeps("http://real.example", now) {
		t.Error("there was room")
	}
	for i := range 10 * maxBases {
		now = now.Add(time.Minute)
		b.keeps(fmt.Sprintf("http://later-%d.example", i), now)
		if !b.keeps("http://real.example", now) && i > int(baseIdle/time.Minute) {
			t.Fatalf("after %d minutes a name in use is not kept", i)
		}
	}
}
