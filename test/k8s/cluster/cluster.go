// Package cluster runs a Kubernetes control plane for tests: Debian's etcd, and an API
// server, a controller manager and a scheduler built from Kubernetes' own module. It
// listens on loopback only, keeps all it has in one folder, and dies with the test.
//
// Pod Security admission enforces "restricted" in every namespace but kube-system.
package cluster

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"mnsrelay/test/process"
)

// Cluster is a running control plane. It has no node until one joins it.
type Cluster struct {
	dir       string
	bin       string
	servers   []*server // in the order of their start
	etcd, api int       // ports
	token     string
	accounts  crypto.PublicKey
}

// Issuer is who makes the tokens of service accounts.
const Issuer = "https://kubernetes.default.svc"

// AccountKey verifies the tokens of service accounts.
func (c *Cluster) AccountKey() crypto.PublicKey { return c.accounts }

type server struct {
	name    string
	process *process.Process
	output  *process.Output
}

// startTimeout bounds the start of one program; the API server takes 3 s on two idle cores.
const startTimeout = 90 * time.Second

// Start starts a control plane whose files are in a new folder below dir (empty: the
// system's temporary folder), and returns when it answers. Close it.
func Start(ctx context.Context, dir string) (_ *Cluster, err error) {
	bin, err := Bin()
	if err != nil {
		return nil, err
	}
	c := &Cluster{bin: bin, token: rand.Text()}
	if c.dir, err = os.MkdirTemp(dir, "mnsrelay-cluster-"); err != nil {
		return nil, fmt.Errorf("make the cluster's folder: %w", err)
	}
	defer func() { //nolint:contextcheck // What was started is ended though ctx may have.
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := c.configure(); err != nil {
		return nil, fmt.Errorf("configure the cluster: %w", err)
	}
	ports, err := process.FreePorts(ctx, 3) // etcd's two, and the API server's
	if err != nil {
		return nil, err
	}
	c.etcd, c.api = ports[0], ports[2]
	if err := c.startEtcd(ctx, ports[1]); err != nil {
		return nil, err
	}
	if err := c.startAPIServer(ctx); err != nil {
		return nil, err
	}
	return c, c.startControllers(ctx)
}

// admission enforces what a cluster that is run with care enforces.
const admission = `apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: restricted, enforce-version: latest, warn: restricted, warn-version: latest}
    exemptions: {namespaces: [kube-system]}
`

func (c *Cluster) configure() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	c.accounts = key.Public()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	// One key signs the tokens of service accounts and, read as a private key, checks them.
	signer := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	return errors.Join(
		os.WriteFile(c.path("accounts.key"), signer, 0o600),
		os.WriteFile(c.path("tokens.csv"), []byte(c.token+",admin,admin,system:masters\n"), 0o600),
		os.WriteFile(c.path("admission.yaml"), []byte(admission), 0o600),
	)
}

func (c *Cluster) startEtcd(ctx context.Context, peers int) error {
	client, peer := loopback("http", c.etcd), loopback("http", peers)
	etcd, err := c.start("etcd", "etcd",
		"--data-dir="+c.path("etcd"),
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
		"--initial-cluster=default="+peer,
		// Its data does not outlive it.
		"--unsafe-no-fsync",
	)
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: install etcd-server, as make test-k8s does", err)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := process.AwaitPort(ctx, c.etcd, etcd.process); err != nil {
		return fmt.Errorf("start etcd: %w; it wrote:\n%s", err, etcd.output.Tail())
	}
	return nil
}

func (c *Cluster) startAPIServer(ctx context.Context) error {
	api, err := c.start("kube-apiserver", c.program("kube-apiserver"),
		"--etcd-servers="+loopback("http", c.etcd),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		"--secure-port="+strconv.Itoa(c.api), "--cert-dir="+c.path("certs"),
		"--token-auth-file="+c.path("tokens.csv"),
		"--authorization-mode=Node,RBAC",
		"--admission-control-config-file="+c.path("admission.yaml"),
		"--service-cluster-ip-range=10.96.0.0/24",
		"--service-account-issuer="+Issuer,
		"--service-account-key-file="+c.path("accounts.key"),
		"--service-account-signing-key-file="+c.path("accounts.key"),
		// Names of nodes resolve nowhere.
		"--kubelet-preferred-address-types=InternalIP",
		// Nobody reaches it by its service.
		"--endpoint-reconciler-type=none",
	)
	if err != nil {
		return err
	}
	// It makes the certificate that this file names.
	if err := os.WriteFile(c.Kubeconfig(), fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: admin, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
current-context: test
`, loopback("https", c.api), c.authority(), c.token), 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	return c.await(ctx, api, "get", "--raw=/readyz")
}

func (c *Cluster) startControllers(ctx context.Context) error {
	common := []string{"--kubeconfig=" + c.Kubeconfig(), "--leader-elect=false", "--secure-port=0"}
	manager, err := c.start("kube-controller-manager", c.program("kube-controller-manager"), append(common,
		"--use-service-account-credentials",
		"--service-account-private-key-file="+c.path("accounts.key"),
		"--root-ca-file="+c.authority(),
	)...)
	if err != nil {
		return err
	}
	if _, err := c.start("kube-scheduler", c.program("kube-scheduler"), common...); err != nil {
		return err
	}
	// The last thing that a pod needs before it may be made.
	return c.await(ctx, manager, "get", "serviceaccount", "default")
}

func (c *Cluster) start(name, program string, args ...string) (*server, error) {
	cmd := exec.Command(program, args...) //nolint:noctx,gosec // It lives until Close; a fixed program.
	cmd.Dir = c.dir
	s := &server{name: name, output: process.NewOutput("")}
	var err error
	if s.process, err = process.Start(cmd, s.output); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c.servers = append(c.servers, s)
	return s, nil
}

// await waits until kubectl is answered.
func (c *Cluster) await(ctx context.Context, s *server, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := c.Kubectl(ctx, args...)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.process.Done():
			return fmt.Errorf("start %s: %w; it wrote:\n%s", s.name, s.process.Outcome(), s.output.Tail())
		case <-ctx.Done():
			return fmt.Errorf("start %s: %w; it wrote:\n%s", s.name, err, s.output.Tail())
		}
	}
}

// Kubeconfig is the path of a file that lets its reader do everything.
func (c *Cluster) Kubeconfig() string { return c.path("kubeconfig") }

// Command is one of the programs of Bin that talks to this cluster, not yet started.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.program(name), args...) //nolint:gosec // A fixed program, a test's own arguments.
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "HOME="+c.dir)
	cmd.WaitDelay = time.Second
	return cmd
}

// Kubectl runs kubectl and gives its standard output.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return Output(c.Command(ctx, "kubectl", args...))
}

// Close ends all programs, the last started first, and removes the folder. It may be called
// more than once.
func (c *Cluster) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	var errs []error
	for len(c.servers) > 0 {
		last := c.servers[len(c.servers)-1]
		c.servers = c.servers[:len(c.servers)-1]
		if err := last.process.End(ctx, syscall.SIGKILL); err != nil {
			errs = append(errs, fmt.Errorf("end %s: %w", last.name, err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}

func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *Cluster) program(name string) string { return filepath.Join(c.bin, name) }

// authority is what the API server signed its own certificate with.
func (c *Cluster) authority() string { return c.path("certs/apiserver.crt") }

func loopback(scheme string, port int) string {
	return scheme + "://127.0.0.1:" + strconv.Itoa(port)
}
