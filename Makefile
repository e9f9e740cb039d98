# mnsrelay. `make help` lists the targets.

SHELL := /bin/sh
.SHELLFLAGS := -euc
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

BIN     := bin
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)

GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# What the chart is tested with, as released; test/k8s/kubernetes/go.mod pins Kubernetes.
K8S        := $(BIN)/k8s
KUBERNETES := $(shell sed -n 's/^\tk8s\.io\/kubernetes \(v[^ ]*\).*/\1/p' test/k8s/kubernetes/go.mod 2>/dev/null)
HELM3      := helm.sh/helm/v3/cmd/helm@v3.22.0
HELM4      := helm.sh/helm/v4/cmd/helm@v4.3.1
KUBE_SCORE := github.com/zegl/kube-score/cmd/kube-score@v1.20.0

# What `make test` passes on to go test: PKG=./internal/mns TESTFLAGS='-run Lease -count=50'
PKG       ?=
TESTFLAGS ?=
# How long `make fuzz` tries each target.
FUZZTIME  ?= 60s
# make chaos, make replicas and make soak: how long (5, 5 and 30 minutes), how many messages (10000 a minute),
# which schedule (a new one), and a folder for the logs of the relays. make soak-cluster: how many messages
# (200000), how many a second.
MINUTES  ?=
MESSAGES ?=
RATE     ?= 1000
SEED     ?=
LOGS     ?=
# What `make demo` delivers to beside its own webhook receiver, amqp://...; and other flags of the demo.
AMQP_URL  ?=
DEMOFLAGS ?=
# What make bench passes on: -scenario backlog,latency, -rounds, -scale, -check, -json, -docs docs, -profiles FOLDER.
BENCHFLAGS ?=

.PHONY: build
build: ## Build bin/mnsrelay.
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/mnsrelay ./cmd/mnsrelay

.PHONY: demo
demo: build ## Run the whole way with nothing installed; AMQP_URL=amqp://... delivers to RabbitMQ too.
	exec $(BIN)/mnsrelay demo $(if $(AMQP_URL),--amqp-url '$(AMQP_URL)') $(DEMOFLAGS)

# The commit's own, so that the same commit makes the same image; VERSION is its tag.
REVISION := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
CREATED  := $(or $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null),1970-01-01T00:00:00Z)

# Nothing of the checkout goes into the binaries but what they are compiled from: hence no -buildvcs.
.PHONY: image
image: ## Write bin/mnsrelay-image.tar, an OCI image for amd64 and arm64; neither Docker nor a base image.
	for arch in amd64 arm64; do \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$arch \
			go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $(BIN)/linux/$$arch/mnsrelay ./cmd/mnsrelay; \
	done
	go -C image run . -binaries '$(abspath $(BIN))' -o '$(abspath $(BIN))/mnsrelay-image.tar' \
		-version '$(VERSION)' -revision '$(REVISION)' -created '$(CREATED)'

# Packages whose tests are timed have the cores for themselves: see test/all. One that is named runs alone.
# What they are made of is compiled before, on all cores: a package that builds the program does it in its own time.
# The wrapper is built and then replaces the shell, so that a signal to make reaches it, and it stops its broker.
.PHONY: test
test: ## Run every test with -race against a private RabbitMQ; MNSRELAY_TEST_AMQP_URL uses yours.
	./test/setup
	go list -race -export -test $(or $(PKG),./...) >/dev/null
	go list -export ./cmd/mnsrelay ./test/withbroker >/dev/null
	go build -o $(BIN)/withbroker ./test/withbroker
	exec $(BIN)/withbroker -- $(if $(PKG),go test -race -p 1 $(TESTFLAGS) $(PKG),./test/all $(TESTFLAGS))

# Built once, and again when a version changes: minutes on two cores.
K8S_BUILD = CGO_ENABLED=0 go build -C test/k8s/kubernetes -buildvcs=false -trimpath \
	-ldflags '-s -w -X k8s.io/component-base/version.gitVersion=$(KUBERNETES)' -o $(abspath $(K8S))/

$(K8S)/kube-apiserver: test/k8s/kubernetes/go.mod
	mkdir -p $(K8S)
	$(K8S_BUILD) $(addprefix k8s.io/kubernetes/cmd/,kube-apiserver kube-controller-manager kube-scheduler kubectl)
	touch $@

$(K8S)/kubelet: test/k8s/kubernetes/go.mod
	mkdir -p $(K8S)
	$(K8S_BUILD) k8s.io/kubernetes/cmd/kubelet
	touch $@

$(K8S)/helm3 $(K8S)/helm4: Makefile
	mkdir -p $(K8S)/$(@F).new
	CGO_ENABLED=0 GOBIN=$(abspath $(K8S))/$(@F).new go install -trimpath -ldflags '-s -w' $(if $(filter %3,$@),$(HELM3),$(HELM4))
	mv $(K8S)/$(@F).new/helm $@
	rmdir $(K8S)/$(@F).new
	touch $@

$(K8S)/kube-score: Makefile
	CGO_ENABLED=0 GOBIN=$(abspath $(K8S)) go install -trimpath -ldflags '-s -w' $(KUBE_SCORE)
	touch $@

.PHONY: chart
chart: $(K8S)/helm3 $(K8S)/helm4 ## Write what is generated of the chart: schema, README, plain manifests, golden renders, notes.
	go test -C test/k8s -count=1 ./chart -run '^Test(GeneratedIsCurrent|Golden|Notes)$$' -update

.PHONY: test-k8s
test-k8s: $(addprefix $(K8S)/,kube-apiserver helm3 helm4 kube-score) ## Install the chart on a real Kubernetes API, with Helm 3 and 4.
	./test/setup etcd:etcd-server promtool:prometheus
	go build -o $(BIN)/withbroker ./test/withbroker
	exec env MNSRELAY_TEST_AMQP_URL=none $(BIN)/withbroker -- go test -C test/k8s -count=1 -timeout 20m $(TESTFLAGS) $(or $(PKG),./chart ./cluster ./install)

$(K8S)/pause: test/k8s/pods/pause/main.go
	CGO_ENABLED=0 go build -C test/k8s -buildvcs=false -trimpath -ldflags '-s -w' -o $(abspath $@) ./pods/pause

.PHONY: test-k8s-pods
test-k8s-pods: image $(addprefix $(K8S)/,kube-apiserver kubelet helm4 pause) ## Run the relay as pods on two nodes, as root, and take away pods and nodes.
	./test/setup etcd:etcd-server containerd runc ip:iproute2 /usr/lib/cni/ptp:containernetworking-plugins /usr/lib/rabbitmq/bin/rabbitmq-server:rabbitmq-server
	go build -o $(BIN)/withbroker ./test/withbroker
	exec env MNSRELAY_TEST_AMQP_URL=none $(BIN)/withbroker -- go test -C test/k8s -count=1 -timeout 20m -v -exec '$(abspath test/k8s/pods/sandbox)' $(TESTFLAGS) ./pods

# As root: the image's files become the root of its programs, as a container runtime does it.
.PHONY: test-image
test-image: image ## Check the image, run it, build the Dockerfile with buildah, run docker-compose.yaml.
	./test/setup buildah debootstrap rabbitmq-server
	go -C image test -count=1 $(TESTFLAGS) ./...

# The wrapper cleans up after Ctrl-C too; the test starts its own broker, so that it needs no address.
CHAOS = go build -o $(BIN)/withbroker ./test/withbroker; \
	exec env MNSRELAY_TEST_AMQP_URL=none $(BIN)/withbroker -- go test -count=1 -timeout 0 -v ./test/chaos \
		$(if $(MESSAGES),-messages $(MESSAGES)) $(if $(SEED),-seed $(SEED)) $(if $(LOGS),-logs '$(abspath $(LOGS))')

.PHONY: chaos
chaos: ## Run the relay through faults at random for MINUTES (5); SEED replays a schedule.
	./test/setup
	$(CHAOS) -run '^TestChaos$$' -minutes $(or $(MINUTES),5)

.PHONY: replicas
replicas: ## Share a queue between four relays, some of which die, for MINUTES (5).
	./test/setup
	$(CHAOS) -run '^TestReplicas$$' -minutes $(or $(MINUTES),5)

.PHONY: bench
bench: ## Measure the relay against the least code and the usual way, in turn; BENCHFLAGS='-scenario backlog -check'.
	./test/setup
	go build -o $(BIN)/bench ./test/bench
	exec $(BIN)/bench $(BENCHFLAGS)

.PHONY: soak
soak: ## Run one relay under load and faults for MINUTES (30): does anything that it needs grow? From 25 on it is judged.
	./test/setup
	$(CHAOS) -run '^TestSoak$$' -minutes $(or $(MINUTES),30)

.PHONY: soak-cluster
soak-cluster: ## Relay MESSAGES (200000) at RATE (1000) a second while a node of three restarts every 20 s.
	./test/setup
	go build -o $(BIN)/withbroker ./test/withbroker
	exec env MNSRELAY_TEST_AMQP_URL=none $(BIN)/withbroker -- go test -count=1 -timeout 0 -v ./test/faults -run '^TestCluster$$/^RestartsInTurn$$' \
		-messages $(or $(MESSAGES),200000) -rate $(RATE) -every 20s

.PHONY: lint
lint: ## Check formatting, lint, go.mod and the shell scripts.
	./test/setup shellcheck
	go run $(GOLANGCI_LINT) fmt --diff
	go run $(GOLANGCI_LINT) run
	go mod tidy -diff
	mkdir -p $(BIN)
	cd api && go tool -modfile=tools.mod oapi-codegen -config oapi-codegen.yaml -o ../$(BIN)/server.gen openapi.yaml
	diff $(BIN)/server.gen api/server.gen.go >&2
	cd test/k8s && go run $(GOLANGCI_LINT) fmt --diff && go run $(GOLANGCI_LINT) run && go mod tidy -diff
	go mod tidy -C test/k8s/kubernetes -diff
	cd image && go run $(GOLANGCI_LINT) run && go mod tidy -diff
	git grep -lzE '^#!.*[/ ](ba|da)?sh( |$$)' -- ':!*.go' ':!*.md' | xargs -0r shellcheck

.PHONY: fmt
fmt: ## Format the Go files.
	go run $(GOLANGCI_LINT) fmt

.PHONY: generate
generate: ## Make the configuration's JSON Schema, docs/configuration.md and docs/cli.md of the source, and the API's server of api/openapi.yaml.
	go generate ./configs ./api ./cmd/mnsrelay

# To make each interesting input smaller takes a minute by default, in which nothing new is tried: all of FUZZTIME,
# where inputs are whole configurations.
.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (60s).
	go list -f '{{.Dir}}' ./... | while read -r dir; do \
		for target in $$(cat "$$dir"/*_test.go 2>/dev/null | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p'); do \
			echo "$$target in $$dir"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x "$$dir" </dev/null; \
		done; \
	done

.PHONY: clean
clean: ## Remove what was built.
	rm -rf $(BIN)

.PHONY: help
help: ## List the targets.
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16
