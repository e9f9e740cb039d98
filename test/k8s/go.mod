// The chart's tests: what it renders, and what a real Kubernetes makes of it. A module of
// its own, so that the relay does not depend on Kubernetes.
module mnsrelay/test/k8s

go 1.26.0

require (
	github.com/stretchr/testify v1.12.1
	mnsrelay v0.0.0
)

require go.yaml.in/yaml/v3 v3.0.5 // indirect

replace mnsrelay => ../..
