package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/cachetiers/peer"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/ops"
)

const (
	// scrubAfter is how long after the start the first scrub begins: those who
	// pull at once have the disk first.
	scrubAfter = 10 * time.Minute
	// scrubRate is the least that a scrub reads, in bytes a second, so that a
	// small cache is done soon and the disk can sleep.
	scrubRate = 4 << 20
)

// openDisks opens the cache: cache.disks, or else cache.disk under data.
func openDisks(c *Config, data *dataDir, log *slog.Logger, meter registry.Meter) (*cachetiers.Disks, error) {
	places := []cachetiers.DiskPlace{{Path: data.file("cache"), Size: int64(c.Cache.Disk), Make: true}}
	if len(c.Cache.Disks) > 0 {
		places = nil
		for _, d := range c.Cache.Disks {
			places = append(places, cachetiers.DiskPlace{Path: d.Path, Size: int64(d.Size)})
		}
	}
	return cachetiers.OpenDisks(places, cachetiers.DisksOptions{Disk: cachetiers.DiskOptions{Log: log}, Meter: meter})
}

// countDisks shows each disk in the metrics.
func (n *node) countDisks() {
	for i, d := range n.disks.Status() {
		n.metrics.Disk(d.Path, d.Limit,
			func() int64 { return n.disks.Status()[i].Bytes },
			func() bool { return n.disks.Status()[i].State == cachetiers.DiskWorks })
	}
}

// A nodeStatus is what a running node says of itself.
type nodeStatus struct {
	Version string                  `json:"version"`
	Data    string                  `json:"data"` // the data directory
	Disks   []cachetiers.DiskStatus `json:"disks"`
	Next    []peer.State            `json:"next"`    // nodes behind
	Peers   []peer.State            `json:"peers"`   // nodes beside, this one among them
	Waiting int                     `json:"waiting"` // blobs that are still to be written to the origin store

	Entitlements entitlementStatus       `json:"entitlements"`
	Front        []registry.NodeStanding `json:"front"` // how the copies of nodes in front are
}

// admin is what operators can ask the node with this data directory.
func (n *node) admin(data string) ops.Admin {
	return ops.Admin{
		Status:   func() any { return n.status(data) },
		Accounts: n.entitled.admin(),
		Verify: func(ctx context.Context, rate int64, report func(any) error) error {
			last, err := n.scrub(ctx, rate, func(l verifyLine) { report(l) })
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if last.Done = true; err != nil {
				last.Error = err.Error()
			}
			return report(last)
		},
	}
}

// status is what the node says of itself now.
func (n *node) status(data string) nodeStatus {
	s := nodeStatus{Version: version, Data: data, Disks: n.disks.Status(), Next: []peer.State{}, Peers: []peer.State{},
		Entitlements: n.entitled.status(), Front: n.entitled.board.List()}
	if n.next != nil {
		s.Next = n.next.States()
	}
	if n.peers != nil {
		s.Peers = n.peers.States()
	}
	if n.keeper != nil {
		s.Waiting = n.keeper.Waiting()
	}
	return s
}

var errScrubbing = errors.New("a scrub is running already")

// scrub reads all that is on disk and fetches again what is damaged. What it
// returns is right whether or not there is an error too.
func (n *node) scrub(ctx context.Context, rate int64, show func(verifyLine)) (last verifyLine, err error) {
	if !n.scrubbing.TryLock() {
		return lineOf(cachetiers.Scrub{}), errScrubbing
	}
	defer n.scrubbing.Unlock()
	found, err := n.disks.Verify(ctx, rate, func(s cachetiers.Scrub) { show(lineOf(s)) })
	for range found.Damaged {
		n.metrics.Event("blob damaged", "scrub")
	}
	last = lineOf(found)
	if len(found.Damaged) > 0 {
		// Past the memory, where a blob may be that is no longer on disk.
		s := &registry.Service{Names: n.names, Blobs: n.onDisk, Spaces: n.service.Spaces, Log: n.service.Log}
		repaired, rerr := s.Repair(ctx, found.Damaged)
		last.Repaired = words(repaired)
		err = errors.Join(err, rerr)
	}
	return last, err
}

// lineOf is the line that tells of s.
func lineOf(s cachetiers.Scrub) verifyLine {
	return verifyLine{Blobs: s.Blobs, Of: s.Of, Bytes: s.Bytes, OfBytes: s.OfBytes, Damaged: words(s.Damaged), Repaired: []string{}}
}

func words(list []digest.Digest) []string {
	out := make([]string, len(list))
	for i, d := range list {
		out[i] = string(d)
	}
	return out
}

// keepScrubbing scrubs once in every period, spread over most of it; 0: never.
func (n *node) keepScrubbing(ctx context.Context, period time.Duration, log *slog.Logger) {
	if period <= 0 {
		return
	}
	for next := time.Now().Add(min(scrubAfter, period)); ; {
		wait := time.NewTimer(time.Until(next))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		begun := time.Now()
		next = begun.Add(period)
		rate := max(scrubRate, int64(1.25*float64(n.disks.Bytes())/period.Seconds()))
		last, err := n.scrub(ctx, rate, func(verifyLine) {})
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log.Warn("scrub", "blobs", last.Blobs, "damaged", len(last.Damaged), "repaired", len(last.Repaired), "err", err)
		default:
			log.Info("scrub", "blobs", last.Blobs, "damaged", len(last.Damaged), "repaired", len(last.Repaired), "took", time.Since(begun).String())
		}
	}
}
