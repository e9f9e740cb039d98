package main

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	compose "github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"
)

// loadCompose reads docker-compose.yaml with the library of docker compose, which validates it.
func loadCompose(t *testing.T) *compose.Project {
	t.Helper()
	details, err := loader.LoadConfigFiles(t.Context(), []string{filepath.Join(repository, "docker-compose.yaml")}, repository)
	require.NoError(t, err)
	details.Environment = compose.Mapping{} // none is needed
	project, err := loader.LoadWithContext(t.Context(), *details)
	require.NoError(t, err)
	return project
}

// newService gives a container of the image as docker compose makes it: with its environment,
// the files that are mounted, and the names of the others, all of which are this machine.
func newService(t *testing.T, project *compose.Project, name, network string) (*container, []string) {
	t.Helper()
	service := project.Services[name]
	files := map[string]string{"etc/hosts": "127.0.0.1 localhost " + strings.Join(project.ServiceNames(), " ") + "\n"}
	for _, mount := range service.Volumes {
		text, err := os.ReadFile(mount.Source)
		require.NoError(t, err)
		require.True(t, mount.ReadOnly)
		files[mount.Target] = string(text)
	}
	var env []string
	for key, value := range service.Environment {
		env = append(env, key+"="+*value)
	}
	return newContainer(t, openMade(t).image(t, runtime.GOARCH), network, files), env
}

func TestCompose(t *testing.T) {
	t.Parallel()
	project := loadCompose(t)
	require.ElementsMatch(t, []string{"emulator", "relay", "rabbitmq"}, project.ServiceNames())
	for _, name := range []string{"emulator", "relay"} {
		service := project.Services[name]
		require.Equal(t, "mnsrelay:dev", service.Image, name)
		require.True(t, service.ReadOnly, name)
		require.Equal(t, []string{"ALL"}, service.CapDrop, name)
		require.Contains(t, service.SecurityOpt, "no-new-privileges:true", name)
	}
	for _, service := range project.Services {
		for _, port := range service.Ports {
			require.True(t, net.ParseIP(port.HostIP).IsLoopback(), "%s is open to more than this machine", service.Name)
		}
	}
	built := project.Services["emulator"].Build
	require.NotNil(t, built)
	_, err := os.Stat(filepath.Join(built.Context, built.Dockerfile))
	require.NoError(t, err)

	// A configuration that warns of nothing but the plain HTTP of a network of containers.
	relay, env := newService(t, project, "relay", newNetwork(t))
	output, code := relay.end(relay.start(env, "validate", "--config", "/etc/mnsrelay/mnsrelay.yaml"))
	require.Zero(t, code, output)
	for line := range strings.Lines(output) {
		require.True(t, strings.Contains(line, "is valid") || strings.Contains(line, "is http://"), output)
	}
}

// What docker-compose.yaml says runs as it stands, and does what its first lines promise: a
// message that is sent to the emulator is in RabbitMQ's queue.
func TestComposeRuns(t *testing.T) {
	t.Parallel()
	project := loadCompose(t)
	network := newNetwork(t)

	emulator, env := newService(t, project, "emulator", network)
	serving := emulator.start(env, project.Services["emulator"].Command...)
	check := project.Services["emulator"].HealthCheck.Test
	require.Equal(t, "CMD", check[0])
	serving.await("it is healthy", func() bool {
		_, code := emulator.end(emulator.exec(env, check[1:]...))
		return code == 0
	})

	relay, relayEnv := newService(t, project, "relay", network)
	relaying := relay.start(relayEnv, project.Services["relay"].Command...)
	relaying.await("it is healthy", func() bool {
		_, code := relay.end(relay.exec(relayEnv, relay.config.Healthcheck.Test[1:]...))
		return code == 0
	})
	ready := func() bool {
		_, code := relay.end(relay.exec(relayEnv, "mnsrelay", "healthcheck", "--ready"))
		return code == 0
	}
	require.False(t, ready(), "there is no broker yet")

	broker := startBroker(t, network)
	relaying.await("it is ready", ready)
	output, code := emulator.end(emulator.exec(env, "mnsrelay", "queue", "send", "--queue", "Alicom-Queue-1234567890123456-SmsReport",
		"--endpoint", "http://127.0.0.1:8090", `{"success":true}`))
	require.Zero(t, code, output)
	relaying.await("the message is in RabbitMQ", func() bool {
		return strings.Contains(broker.ctl("list_queues", "--quiet", "name", "messages"), "sms.reports\t1")
	})
	require.Zero(t, relaying.stop(), "drained: %s", relaying.text())
	require.Zero(t, serving.stop())
}

// broker is Debian's RabbitMQ where docker-compose.yaml has that of an image.
type broker struct {
	t   *testing.T
	in  inside
	ran *process
}

func startBroker(t *testing.T, network string) *broker {
	t.Helper()
	folder := t.TempDir()
	require.NoError(t, os.WriteFile(folder+"/rabbitmq.conf", []byte("listeners.tcp.1 = 127.0.0.1:5672\nvm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\n"), 0o600))
	require.NoError(t, os.WriteFile(folder+"/plugins", []byte("[]."), 0o600))
	require.NoError(t, os.Mkdir(folder+"/data", 0o700))
	b := &broker{t: t, in: inside{
		Network: network, Dir: folder,
		Env: []string{
			"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + folder, "TMPDIR=" + folder, "LANG=C.UTF-8",
			"RUNNING_UNDER_SYSTEMD=true", // the start script becomes the server
			"RABBITMQ_CONF_ENV_FILE=/dev/null", "RABBITMQ_NODENAME=compose@localhost", "RABBITMQ_LOGS=-",
			"RABBITMQ_LOG_BASE=" + folder, "RABBITMQ_MNESIA_BASE=" + folder + "/data", "RABBITMQ_PID_FILE=" + folder + "/pid",
			"RABBITMQ_CONFIG_FILE=" + folder + "/rabbitmq.conf", "RABBITMQ_ADVANCED_CONFIG_FILE=" + folder + "/none",
			"RABBITMQ_GENERATED_CONFIG_DIR=" + folder, "RABBITMQ_ENABLED_PLUGINS_FILE=" + folder + "/plugins",
			"RABBITMQ_PLUGINS_EXPAND_DIR=" + folder + "/expanded",
		},
	}}
	server := b.in
	server.Args = []string{"/usr/lib/rabbitmq/bin/rabbitmq-server"}
	b.ran = start(t, server)
	b.ran.await("it listens", func() bool { return strings.Contains(b.ran.text(), "Server startup complete") })
	return b
}

// ctl runs rabbitmqctl and gives what it wrote.
func (b *broker) ctl(args ...string) string {
	b.t.Helper()
	in := b.in
	in.Args = append([]string{"/usr/lib/rabbitmq/bin/rabbitmqctl"}, args...)
	p := start(b.t, in)
	<-p.done
	require.NoError(b.t, p.err, p.text())
	return p.text()
}
