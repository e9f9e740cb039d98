package broker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"mnsrelay/test/process"
)

// Cluster is a number of Nodes that know each other and find a majority, which quorum
// queues need: a node in the minority pauses (pause_minority), that is, it closes its
// connections and accepts none until it sees the others again. The nodes can be stopped,
// killed, paused and started each by itself. All of it is gone after Close, and dies with
// this process too.
type Cluster struct {
	epmd  *process.Process
	nodes []*Node
}

// clusterConf is what the nodes of a cluster have beside the settings of a Node. A peer that
// is silent for about five seconds is taken for dead. The log of a quorum queue is not as
// large on disk as it would be by default.
const clusterConf = `
cluster_formation.peer_discovery_backend = classic_config
cluster_partition_handling = pause_minority
net_ticktime = 5
raft.wal_max_size_bytes = 64000000
`

// StartCluster starts size nodes, in parallel, and returns when they are one cluster that
// accepts connections, which takes some 15 seconds. Each node has the settings of cfg.
func StartCluster(ctx context.Context, cfg Config, size int) (_ *Cluster, err error) {
	if !Installed() {
		return nil, fmt.Errorf("%s is not there: install rabbitmq-server with test/setup", server)
	}
	c := &Cluster{}
	defer func() { //nolint:contextcheck // What was started is ended though ctx may have.
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	ports, err := process.FreePorts(ctx, size*nodePorts+1)
	if err != nil {
		return nil, err
	}
	epmd := ports[size*nodePorts]
	cfg.Conf += clusterConf
	for i := range size {
		dir, err := os.MkdirTemp(cfg.Dir, "mnsrelay-broker-")
		if err != nil {
			return nil, fmt.Errorf("make a node's folder: %w", err)
		}
		n := &Node{dir: dir, name: fmt.Sprintf("mnsrelay%d@localhost", i)}
		c.nodes = append(c.nodes, n)
		cfg.Conf += fmt.Sprintf("cluster_formation.classic_config.nodes.%d = %s\n", i+1, n.name)
	}
	if c.epmd, err = startEPMD(ctx, epmd, c.nodes[0].dir); err != nil {
		return nil, err
	}
	cookie := newCookie()
	var starting errgroup.Group
	for i, n := range c.nodes {
		if err := n.configure(cfg, ports[i*nodePorts:], epmd, cookie); err != nil {
			return nil, fmt.Errorf("configure a node: %w", err)
		}
		starting.Go(func() error { return n.Start(ctx) })
	}
	if err := starting.Wait(); err != nil {
		return nil, err
	}
	return c, c.Await(ctx)
}

// Await waits until every node runs and sees all others.
func (c *Cluster) Await(ctx context.Context) error {
	var names []string
	for _, n := range c.nodes {
		names = append(names, "'"+n.name+"'")
	}
	// One call that asks them over and over: each call takes a second of a processor, which
	// the nodes that start want too. A node that is about to run may not answer yet.
	views := fmt.Sprintf(`Nodes = [%s],
All = fun() ->
	{Views, Silent} = rpc:multicall(Nodes, rabbit_mnesia, cluster_nodes, [running], 5000),
	Silent =:= [] andalso lists:all(fun(View) -> is_list(View) andalso length(View) =:= length(Nodes) end, Views)
end,
Wait = fun Again() -> case All() of true -> ok; false -> timer:sleep(100), Again() end end,
Wait().`, strings.Join(names, ","))
	for {
		// Asked again where the node that is asked has gone away meanwhile, to pause.
		_, err := c.nodes[0].Ctl(ctx, "eval", views)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("wait for the cluster: %w: %w", ctx.Err(), err)
		case err == nil:
			return nil
		}
	}
}

// PrivateCluster is a cluster that the test has for itself, gone when the test ends.
func PrivateCluster(tb testing.TB, cfg Config, size int) *Cluster {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cfg.Dir = tb.TempDir()
	c, err := StartCluster(ctx, cfg, size)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Errorf("close the cluster: %v", err)
		}
	})
	return c
}

// Nodes are those of the cluster, in an order that stays.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Leader is the node that leads a quorum queue of the vhost "/"; nil: none does at present.
// It asks another node than those that are given.
func (c *Cluster) Leader(ctx context.Context, queue string, ask *Node) (*Node, error) {
	listed, err := ask.Ctl(ctx, "list_queues", "--no-table-headers", "name", "leader")
	if err != nil {
		return nil, fmt.Errorf("find the leader of %q: %w", queue, err)
	}
	for line := range strings.Lines(listed) {
		name, leader, _ := strings.Cut(strings.TrimSpace(line), "\t")
		for _, n := range c.nodes {
			if name == queue && leader == n.name {
				return n, nil
			}
		}
	}
	return nil, nil //nolint:nilnil // There may be none.
}

// Cut takes a node off all others, which stay together: neither side can reach the other.
// Clients reach both, as long as the node has not noticed that it is in the minority.
func (c *Cluster) Cut(ctx context.Context, n *Node) error {
	// Nodes that do not share a cookie refuse each other.
	_, err := n.Ctl(ctx, "eval", fmt.Sprintf("[begin erlang:set_cookie(N, cut), erlang:disconnect_node(N) end || N <- [%s]].", c.others(n)))
	if err != nil {
		return fmt.Errorf("cut %s off: %w", n.name, err)
	}
	return nil
}

// Heal ends Cut. The node takes part again after a few seconds.
func (c *Cluster) Heal(ctx context.Context, n *Node) error {
	_, err := n.Ctl(ctx, "eval", fmt.Sprintf("[erlang:set_cookie(N, erlang:get_cookie()) || N <- [%s]].", c.others(n)))
	if err != nil {
		return fmt.Errorf("let %s back: %w", n.name, err)
	}
	return nil
}

// others are the names of the other nodes, as Erlang writes them.
func (c *Cluster) others(n *Node) string {
	var names []string
	for _, other := range c.nodes {
		if other != n {
			names = append(names, "'"+other.name+"'")
		}
	}
	return strings.Join(names, ",")
}

// Close ends what is left of the cluster and removes its folders. It may be called more
// than once.
func (c *Cluster) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.Close())
	}
	if c.epmd != nil {
		errs = append(errs, c.epmd.End(ctx, syscall.SIGKILL))
	}
	return errors.Join(errs...)
}
