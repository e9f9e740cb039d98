package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mnsrelay/test/certs"
	"mnsrelay/test/process"
)

// Debian's scripts in /usr/sbin insist on root or the user rabbitmq and on the
// machine's own node; those behind them do not.
const (
	server = "/usr/lib/rabbitmq/bin/rabbitmq-server"
	ctl    = "/usr/lib/rabbitmq/bin/rabbitmqctl"
)

// startupComplete is what the server writes when its listeners are open.
const startupComplete = "Server startup complete"

// Config is what a Node is started with. The zero value is a plain broker.
type Config struct {
	// Dir is where the node's own folder is made; empty: the system's temporary
	// folder.
	Dir string
	// Plugins are enabled; none is by default.
	Plugins []string
	// Conf is appended to rabbitmq.conf.
	Conf string
	// TLS, if not nil, adds a listener at TLSURL that asks for a client certificate. The
	// mechanism EXTERNAL takes its common name for the user.
	TLS *certs.Files
}

// Node is a RabbitMQ node of our own: on loopback, on free ports, with its own
// folder, Erlang cookie and epmd, so that it meets no other node of the machine. All
// of it is gone after Close, and dies with this process too.
type Node struct {
	dir         string
	name        string // that Erlang knows it by
	port        int
	tlsPort     int
	environment []string
	epmd        *process.Process // nil: its cluster has one
	beam        *process.Process
	blocked     bool // there is an alarm of Block's

	certificates    *certs.Files // of a Pool's node
	certificatesDir string
}

// Start starts a node and returns when it accepts connections.
func Start(ctx context.Context, cfg Config) (_ *Node, err error) {
	if !Installed() {
		return nil, fmt.Errorf("%s is not there: install rabbitmq-server with test/setup", server)
	}
	dir, err := os.MkdirTemp(cfg.Dir, "mnsrelay-broker-")
	if err != nil {
		return nil, fmt.Errorf("make the broker's folder: %w", err)
	}
	n := &Node{dir: dir, name: "mnsrelay@localhost"}
	defer func() { //nolint:contextcheck // What was started is ended though ctx may have.
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	ports, err := process.FreePorts(ctx, nodePorts+1)
	if err != nil {
		return nil, err
	}
	if n.epmd, err = startEPMD(ctx, ports[nodePorts], dir); err != nil {
		return nil, err
	}
	if err := n.configure(cfg, ports, ports[nodePorts], newCookie()); err != nil {
		return nil, fmt.Errorf("configure the broker: %w", err)
	}
	if err := n.Start(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

// startEPMD starts the process by which Erlang nodes find each other. They would start
// "epmd -daemon", which outlives everything; this one is a child in the foreground.
func startEPMD(ctx context.Context, port int, home string) (*process.Process, error) {
	cmd := exec.Command("epmd", "-port", strconv.Itoa(port), "-address", "127.0.0.1") //nolint:noctx,gosec // It lives until Close; its argument is a number.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}
	epmd, err := process.Start(cmd, nil)
	if err != nil {
		return nil, fmt.Errorf("start epmd: %w", err)
	}
	if err := process.AwaitPort(ctx, port, epmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start epmd: %w", err), epmd.End(context.WithoutCancel(ctx), syscall.SIGKILL))
	}
	return epmd, nil
}

// newCookie is the secret that nodes which may talk to each other share.
func newCookie() string {
	return "mnsrelay" + strconv.FormatUint(rand.Uint64(), 36) //nolint:gosec // It only keeps nodes on loopback apart.
}

// nodePorts is how many ports a node takes: plain, TLS, and for other nodes.
const nodePorts = 3

func (n *Node) configure(cfg Config, ports []int, epmd int, cookie string) error {
	n.port, n.tlsPort = ports[0], ports[1]
	if cfg.TLS != nil {
		cfg.Plugins = append(slices.Clone(cfg.Plugins), "rabbitmq_auth_mechanism_ssl")
		cfg.Conf += fmt.Sprintf(`
listeners.ssl.1 = 127.0.0.1:%d
ssl_options.cacertfile = %s
ssl_options.certfile = %s
ssl_options.keyfile = %s
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
ssl_cert_login_from = common_name
`, n.tlsPort, cfg.TLS.CA, cfg.TLS.ServerCert, cfg.TLS.ServerKey)
	}
	in := func(name string) string { return filepath.Join(n.dir, name) }
	onLoopback := "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
	n.environment = []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + n.dir,
		"TMPDIR=" + n.dir,
		"LANG=C.UTF-8",
		"LC_ALL=C.UTF-8",
		"ERL_EPMD_PORT=" + strconv.Itoa(epmd),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"ERL_CRASH_DUMP=/dev/null",
		// The start script then becomes the server instead of waiting for it.
		"RUNNING_UNDER_SYSTEMD=true",
		"RABBITMQ_CONF_ENV_FILE=/dev/null",
		"RABBITMQ_NODENAME=" + n.name,
		"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
		"RABBITMQ_NODE_PORT=" + strconv.Itoa(n.port),
		"RABBITMQ_DIST_PORT=" + strconv.Itoa(ports[2]),
		"RABBITMQ_LOGS=-",
		"RABBITMQ_LOG_BASE=" + in("log"),
		"RABBITMQ_MNESIA_BASE=" + in("data"),
		"RABBITMQ_PID_FILE=" + in("pid"),
		"RABBITMQ_CONFIG_FILE=" + in("rabbitmq.conf"),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + in("none"),
		"RABBITMQ_GENERATED_CONFIG_DIR=" + in("generated"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + in("plugins"),
		"RABBITMQ_PLUGINS_EXPAND_DIR=" + in("expanded"),
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=" + onLoopback,
		"RABBITMQ_CTL_ERL_ARGS=" + onLoopback,
	}
	conf := fmt.Sprintf(`listeners.tcp.1 = 127.0.0.1:%d
log.console.level = info
vm_memory_high_watermark.absolute = %s
disk_free_limit.absolute = 50MB
%s
`, n.port, memoryLimit, cfg.Conf)
	return errors.Join(
		os.Mkdir(in("data"), 0o700),
		os.Mkdir(in("log"), 0o700),
		os.Mkdir(in("generated"), 0o700),
		os.WriteFile(in(".erlang.cookie"), []byte(cookie), 0o400),
		os.WriteFile(in("plugins"), []byte("["+strings.Join(cfg.Plugins, ",")+"]."), 0o600),
		os.WriteFile(in("rabbitmq.conf"), []byte(conf), 0o600),
	)
}

// memoryLimit raises the memory alarm.
const memoryLimit = "1GB"

// Start starts the node again after Stop or Kill, on the same port with the same
// data, and returns when it accepts connections.
func (n *Node) Start(ctx context.Context) error {
	cmd := exec.Command(server) //nolint:noctx // It lives until it is stopped.
	cmd.Dir = n.dir
	cmd.Env = n.environment
	ready := process.NewOutput(startupComplete)
	beam, err := process.Start(cmd, ready)
	if err != nil {
		return fmt.Errorf("start the broker: %w", err)
	}
	n.beam = beam
	select {
	case <-ready.Seen():
		return nil
	case <-beam.Done():
		return fmt.Errorf("start the broker: it ended and wrote:\n%s\n%w", ready.Tail(), beam.Outcome())
	case <-ctx.Done():
		return fmt.Errorf("start the broker: %w; it wrote:\n%s", ctx.Err(), ready.Tail())
	}
}

// URL is where the node listens, as the user guest, who may do everything.
func (n *Node) URL() string { return fmt.Sprintf("amqp://guest:guest@127.0.0.1:%d/", n.port) }

// TLSURL is where the node listens for TLS, without a user.
func (n *Node) TLSURL() string { return fmt.Sprintf("amqps://127.0.0.1:%d/", n.tlsPort) }

// PID is the number of the broker's process, which changes with each Start.
func (n *Node) PID() int { return n.beam.PID() }

// Stop ends the node in order.
func (n *Node) Stop(ctx context.Context) error { return n.beam.End(ctx, syscall.SIGTERM) }

// Kill ends the node at once.
func (n *Node) Kill(ctx context.Context) error { return n.beam.End(ctx, syscall.SIGKILL) }

// Pause stops the node's process: the kernel keeps its connections open, and
// accepts new ones that nobody answers.
func (n *Node) Pause() error { return n.beam.Signal(syscall.SIGSTOP) }

// Resume lets the node's process run on.
func (n *Node) Resume() error { return n.beam.Signal(syscall.SIGCONT) }

// Block raises the memory alarm, and returns when every connection knows of it.
func (n *Node) Block(ctx context.Context) error {
	n.blocked = true
	_, err := n.Ctl(ctx, "eval", `ok = vm_memory_monitor:set_vm_memory_high_watermark({absolute, 1000000}),
Raised = fun Again() -> case rabbit_alarm:get_alarms() of [] -> timer:sleep(20), Again(); _ -> ok end end,
Raised().`)
	return err
}

// Unblock clears the memory alarm.
func (n *Node) Unblock(ctx context.Context) error {
	_, err := n.Ctl(ctx, "set_vm_memory_high_watermark", "absolute", memoryLimit)
	n.blocked = err != nil
	return err
}

// Sync returns once what was declared is on disk. RabbitMQ 3.10 mostly waits for that when
// it declares, and not always: its database keeps what it writes for up to two seconds, and
// a broker that is killed meanwhile does not know a durable queue any more.
func (n *Node) Sync(ctx context.Context) error {
	_, err := n.Ctl(ctx, "eval", "ok = mnesia:sync_log().")
	return err
}

// Ctl runs rabbitmqctl, which takes about a second, and gives what it wrote.
func (n *Node) Ctl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, ctl, append([]string{"--quiet"}, args...)...) //nolint:gosec // A fixed program, a test's own arguments.
	cmd.Dir = n.dir
	cmd.Env = n.environment
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("run rabbitmqctl %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// Close ends what is left of the node and removes its folder. It may be called more
// than once.
func (n *Node) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var errs []error
	for _, p := range []*process.Process{n.beam, n.epmd} {
		if p != nil {
			errs = append(errs, p.End(ctx, syscall.SIGKILL))
		}
	}
	for _, dir := range []string{n.dir, n.certificatesDir} {
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove the broker's folder: %w", err))
		}
	}
	return errors.Join(errs...)
}
