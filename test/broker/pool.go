package broker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"mnsrelay/test/certs"
)

// Pool lends Nodes to tests, one to each at a time: to start one takes some seconds
// of processor time, too much to have one for each test. The nodes have TLS; whoever
// made the pool closes it when all tests have ended.
type Pool struct {
	cfg Config

	mu   sync.Mutex
	idle []*Node
	all  []*Node
}

// NewPool makes an empty pool of nodes with the settings of cfg, without its TLS.
func NewPool(cfg Config) *Pool { return &Pool{cfg: cfg} }

// Borrow is a node that the test has for itself until it ends. It is as a new one is: there
// is the vhost "/", with nothing in it, and the user guest. Its client has the files that
// Certificates gives.
//
// A node that a failed test had, or that is stopped or blocked at the end, is not lent again.
func (p *Pool) Borrow(tb testing.TB) *Node {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n := p.take()
	var err error
	if n != nil {
		err = n.reset(ctx)
	} else {
		n, err = p.start(ctx, tb)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() || n.blocked || n.ended() {
			if err := n.Close(); err != nil {
				tb.Errorf("close the broker: %v", err)
			}
			return
		}
		if err := n.Resume(); err != nil {
			tb.Errorf("resume the broker: %v", err)
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.idle = append(p.idle, n)
	})
	return n
}

// Private is Borrow where a node can be started, and otherwise as the function Private.
func (p *Pool) Private(tb testing.TB) Broker {
	tb.Helper()
	if !Installed() {
		return Private(tb)
	}
	return p.Borrow(tb)
}

func (p *Pool) take() *Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 {
		return nil
	}
	n := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	return n
}

func (p *Pool) start(ctx context.Context, tb testing.TB) (*Node, error) {
	tb.Helper()
	dir, err := os.MkdirTemp("", "mnsrelay-certs-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for certificates: %w", err)
	}
	cfg := p.cfg
	cfg.TLS = certs.In(tb, dir)
	n, err := Start(ctx, cfg)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	n.certificates, n.certificatesDir = cfg.TLS, dir
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, n)
	return n, nil
}

// Close ends all nodes.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, n := range p.all {
		errs = append(errs, n.Close())
	}
	p.all, p.idle = nil, nil
	return errors.Join(errs...)
}

// resetScript makes the node's database that of a new one, on disk too: the node may be
// killed right after.
const resetScript = `T = <<"tests">>,
[ok = rabbit_vhost:delete(V, T) || V <- rabbit_vhost:list_names()],
[ok = rabbit_auth_backend_internal:delete_user(U, T) || L <- rabbit_auth_backend_internal:list_users(), U <- [proplists:get_value(user, L)], U =/= <<"guest">>],
ok = rabbit_vhost:add(<<"/">>, T),
ok = rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"/">>, <<".*">>, <<".*">>, <<".*">>, T),
ok = mnesia:sync_log().`

func (n *Node) reset(ctx context.Context) error {
	_, err := n.Ctl(ctx, "eval", resetScript)
	return err
}

// ended tells whether the node has been stopped or killed and not started again.
func (n *Node) ended() bool {
	select {
	case <-n.beam.Done():
		return true
	default:
		return false
	}
}

// Certificates are the files of a node that a Pool lends.
func (n *Node) Certificates() *certs.Files { return n.certificates }

// Tests is what TestMain is given.
type Tests interface{ Run() int }

// Closing are the tests, and after them the end of the pools.
func Closing(tests Tests, pools ...*Pool) Tests { return closing{tests, pools} }

type closing struct {
	tests Tests
	pools []*Pool
}

// Run is part of Tests.
func (c closing) Run() int {
	code := c.tests.Run()
	for _, p := range c.pools {
		if err := p.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	return code
}
