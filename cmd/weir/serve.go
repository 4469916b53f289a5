package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-registry/weir/registry/ops"
	"github.com/weir-registry/weir/registry/reply"
)

const (
	// readHeader is how long a client may take to send a request's header.
	readHeader = 10 * time.Second
	// opsConnections bounds the operators' connections.
	opsConnections = 64
	// sweepEvery is how often names are looked through for those that nobody
	// can be answered with any more.
	sweepEvery = 6 * time.Hour
	// drainFor is how long a stop waits for questions to upstreams once the
	// last client is gone. It does not come out of limits.stop, which clients
	// may have used up.
	drainFor = 5 * time.Second
)

// serveFlags are the command line's, which win over the file.
type serveFlags struct{ config, listen, data, registry string }

func serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve container images and npm packages",
		Long: "serve runs a node until it is told to stop (SIGINT or SIGTERM): it then takes no new\n" +
			"connections and finishes what runs, within limits.stop; a second signal ends it at once.\n" +
			"Without a configuration it serves on 127.0.0.1:5000 and keeps its data in ./weir-data.",
		Example: "  weir serve\n  weir serve -c weir.yaml\n  weir serve --listen 0.0.0.0:5000 --data /var/lib/weir",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := untilSignal(cmd.Context())
			defer cancel()
			return serve(ctx, f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "configuration file")
	cmd.Flags().StringVar(&f.listen, "listen", "", "address for clients, instead of the configuration's")
	cmd.Flags().StringVar(&f.data, "data", "", "data directory, instead of the configuration's")
	cmd.Flags().StringVar(&f.registry, "registry", "", "npm registry behind this node, where the configuration names none")
	return cmd
}

// untilSignal is done with the first SIGINT or SIGTERM. Signals are given back
// before it is done, so that a second one kills however soon it comes.
func untilSignal(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
		case <-ctx.Done():
		}
		signal.Stop(signals)
		cancel()
	}()
	return ctx, cancel
}

// serve runs a node until ctx is done, and then until what runs is finished.
func serve(ctx context.Context, f serveFlags, stdout, stderr io.Writer) error {
	c, err := readConfig(f.config)
	if err != nil {
		return err
	}
	if f.listen != "" {
		c.Listen = f.listen
	}
	if f.data != "" {
		c.Data = f.data
	}
	if f.registry != "" {
		if err := checkURL("--registry", f.registry); err != nil {
			return err
		}
	}
	if err := c.check(); err != nil {
		return err
	}
	log := newLog(c.Log, stderr)
	data, err := openData(c.Data)
	if err != nil {
		return err
	}
	defer data.Close()
	// Sockets before stores: an address in use is found out at once, and
	// clients that come early wait in the queue instead of being refused.
	clients, err := listen("listen", c.Listen, c.Limits.Connections)
	if err != nil {
		return err
	}
	defer clients.Close()
	operators, err := listenOps(c)
	if err != nil {
		return err
	}
	if operators != nil {
		defer operators.Close()
	}
	npmURL, noNPM := "", error(nil)
	if c.needsRegistry() {
		if npmURL, noNPM = findRegistry(ctx, c, f.registry, data.file("npm-registry")); noNPM != nil && c.npmExplicit() {
			return fmt.Errorf("npm: %w", noNPM)
		}
	}
	n, err := newNode(c, data, log, npmURL, noNPM)
	if err != nil {
		return err
	}
	s := &server{c: c, node: n, data: data.path, log: log}
	tiers, err := s.listenTiers()
	if err != nil {
		return errors.Join(err, n.Close())
	}
	if tiers != nil {
		defer tiers.Close()
	}
	printHelp(stdout, c, clients.Addr(), n.npm)
	if noNPM != nil {
		fmt.Fprintf(stdout, "\nnpm is off: %v\n", noNPM)
	}
	log.Info("serving", "version", version, "listen", clients.Addr().String(), "data", data.path, "npm", npmURL)
	err = s.run(ctx, clients, operators, tiers)
	if cerr := n.Close(); err == nil {
		err = cerr
	}
	log.Info("stopped")
	return err
}

func listenOps(c *Config) (net.Listener, error) {
	if c.Ops == opsOff {
		return nil, nil
	}
	return listen("ops", c.Ops, opsConnections)
}

// newLog writes text to a terminal and JSON elsewhere, unless it is told.
func newLog(c LogConfig, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // check has refused it already
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "text" || c.Format == "" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// server is the HTTP servers of a node.
type server struct {
	c        *Config
	node     *node
	data     string // the data directory
	log      *slog.Logger
	stopping atomic.Bool
}

// run serves until ctx is done or a listener fails, and then stops gracefully.
func (s *server) run(ctx context.Context, clients, operators, tiers net.Listener) error {
	errorLog := slog.NewLogLogger(s.log.Handler(), slog.LevelDebug) // a client's broken TLS or header is no event
	front := &http.Server{
		Handler:           s.node.handler,
		ReadHeaderTimeout: readHeader,
		WriteTimeout:      reply.WriteTimeout,
		IdleTimeout:       time.Duration(*s.c.Limits.Idle),
		MaxHeaderBytes:    int(s.c.Limits.Headers),
		ErrorLog:          errorLog,
	}
	back := &http.Server{Handler: ops.Handler(s.node.metrics, s.node.admin(s.data), s.ready), ReadHeaderTimeout: readHeader, ErrorLog: errorLog}
	failed := make(chan error, 3)
	serve := func(srv *http.Server, l net.Listener) {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}
	go serve(front, clients)
	if operators != nil {
		go serve(back, operators)
		defer back.Close()
	}
	fronts := []*http.Server{front}
	if tiers != nil {
		inner := s.tiersServer(errorLog)
		go serve(inner, tiers)
		fronts = append(fronts, inner)
	}
	if s.node.trust != nil {
		go s.node.trust.Run(ctx)
	}
	go s.sweep(ctx)
	go s.node.keepScrubbing(ctx, time.Duration(*s.c.Cache.Scrub), s.log)
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	s.stop(fronts)
	return err
}

func (s *server) ready() error {
	if s.stopping.Load() {
		return errors.New("stopping")
	}
	return s.node.entitled.ready()
}

// stop finishes what runs, within the limit, and then what nobody waits for.
func (s *server) stop(fronts []*http.Server) {
	s.stopping.Store(true)
	limit := time.Duration(*s.c.Limits.Stop)
	s.log.Info("stopping", "limit", limit.String())
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var wg sync.WaitGroup
	for _, front := range fronts {
		wg.Go(func() {
			if err := front.Shutdown(ctx); err != nil {
				s.log.Warn("requests were still running at the limit and are cut off")
				front.Close()
			}
		})
	}
	wg.Wait()
	drain, cancelDrain := context.WithTimeout(context.Background(), drainFor)
	defer cancelDrain()
	if err := s.node.service.Drain(drain); err != nil {
		s.log.Warn("questions to upstreams were still open and are cut off", "after", drainFor.String())
	}
}

// sweep drops names that are too old to answer anyone with.
func (s *server) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		n, err := s.node.names.Sweep(ctx, time.Now().Add(-2*s.c.longestStale()))
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.log.Error("sweep names", "err", err)
		case n > 0:
			s.log.Info("swept names that were too old", "count", n)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
