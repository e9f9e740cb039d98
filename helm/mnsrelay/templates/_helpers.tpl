{{- /* Names and labels. */ -}}

{{- define "mnsrelay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "mnsrelay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "mnsrelay.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "mnsrelay.selectorLabels" -}}
app.kubernetes.io/name: {{ include "mnsrelay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mnsrelay.version" -}}
{{- .Values.image.tag | default .Chart.AppVersion | trunc 63 | trimSuffix "-" | quote -}}
{{- end -}}

{{- define "mnsrelay.labels" -}}
{{ include "mnsrelay.selectorLabels" . }}
app.kubernetes.io/version: {{ include "mnsrelay.version" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Without the chart's version: another chart that changes nothing in the pods leaves them alone. */ -}}
{{- define "mnsrelay.podLabels" -}}
{{ include "mnsrelay.selectorLabels" . }}
app.kubernetes.io/component: relay
app.kubernetes.io/version: {{ include "mnsrelay.version" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "mnsrelay.metadata" -}}
name: {{ include "mnsrelay.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "mnsrelay.labels" . | nindent 2 }}
{{- end -}}

{{- define "mnsrelay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "mnsrelay.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "mnsrelay.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* What the rest of the chart needs to know of the configuration. */ -}}

{{- /* The port that mnsrelay listens on. */ -}}
{{- define "mnsrelay.port" -}}
{{- $listen := get (.Values.config.server | default dict) "listen" | default ":8080" -}}
{{- if not (regexMatch `^(0\.0\.0\.0|\[::\])?:[1-9][0-9]*$` $listen) -}}
{{- fail (printf "config.server.listen is %q: the kubelet's probes have to reach it, so write a colon and a port, \":8080\"" $listen) -}}
{{- end -}}
{{- regexFind `[0-9]+$` $listen -}}
{{- end -}}

{{- /* Milliseconds of a duration of the configuration, 1m30s; the argument is (list PATH VALUE). */ -}}
{{- define "mnsrelay.milliseconds" -}}
{{- $path := index . 0 -}}
{{- $text := toString (index . 1) -}}
{{- if not (regexMatch `^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$|^0$` $text) -}}
{{- fail (printf "%s is %q: the chart checks it, so write a duration out, 45s or 1m30s" $path $text) -}}
{{- end -}}
{{- $unit := dict "h" 3600000 "m" 60000 "s" 1000 "ms" 1 -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll `[0-9.]+(ms|h|m|s)` $text -1 -}}
{{- $sum = addf $sum (mulf (regexFind `^[0-9.]+` . | float64) (get $unit (regexFind `[a-z]+$` .))) -}}
{{- end -}}
{{- $sum | ceil | int64 -}}
{{- end -}}

{{- /* Bytes of a quantity of Kubernetes (512Mi, 1G) or a size of the configuration (256MiB);
       the argument is (list PATH VALUE). */ -}}
{{- define "mnsrelay.bytes" -}}
{{- $path := index . 0 -}}
{{- $text := index . 1 -}}
{{- if kindIs "float64" $text -}}{{- $text = int64 $text -}}{{- end -}}
{{- $text = toString $text -}}
{{- if not (regexMatch `^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$|^[0-9]+(KiB|MiB|GiB)$` $text) -}}
{{- fail (printf "%s is %q: the chart reckons with it, so write it as 512Mi or 1Gi" $path $text) -}}
{{- end -}}
{{- $unit := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mulf (regexFind `^[0-9.]+` $text | float64) (get $unit (regexFind `[a-zA-Z]*$` $text | trimSuffix "B")) | int64 -}}
{{- end -}}

{{- /* The file's text. It is never rendered: {{ }} in it belongs to mnsrelay. */ -}}
{{- define "mnsrelay.config" -}}
{{- toYaml .Values.config -}}
{{- end -}}

{{- /* What new pods are needed for: all of the file, or what a reload refuses where mnsrelay reloads by itself. */ -}}
{{- define "mnsrelay.checksum" -}}
{{- if get (.Values.config.reload | default dict) "watch" -}}
{{- pick .Values.config "server" "ledger" "tracing" "reload" | toYaml | sha256sum -}}
{{- else -}}
{{- include "mnsrelay.config" . | sha256sum -}}
{{- end -}}
{{- end -}}

{{- /* The names of the sinks that a delete waits for, as {"sinks": [...]}. A target is a name, or a
       mapping; a list of them, or one alone. */ -}}
{{- define "mnsrelay.requiredSinks" -}}
{{- $targets := list -}}
{{- range .Values.config.sources -}}
{{- if kindIs "slice" .to -}}{{- $targets = concat $targets .to -}}{{- else if .to -}}{{- $targets = append $targets .to -}}{{- end -}}
{{- end -}}
{{- range .Values.config.routes -}}
{{- if kindIs "slice" .to -}}{{- $targets = concat $targets .to -}}{{- else if .to -}}{{- $targets = append $targets .to -}}{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range $targets -}}
{{- if kindIs "string" . -}}{{- $names = append $names . -}}
{{- else if dig "required" true . -}}{{- $names = append $names .sink -}}{{- end -}}
{{- end -}}
{{- dict "sinks" ($names | uniq | sortAlpha) | toJson -}}
{{- end -}}

{{- define "mnsrelay.metricsSelector" -}}
{{- .Values.metricsSelector | default (printf `namespace=%q, job=%q` .Release.Namespace (include "mnsrelay.fullname" .)) -}}
{{- end -}}

{{- /* Refuses what would be installed and then not do what was meant. */ -}}
{{- define "mnsrelay.check" -}}
{{- $config := .Values.config -}}
{{- if not (and $config.sources $config.sinks) -}}
{{- fail "config.sources and config.sinks are empty: write the configuration under config, in the shape of its file; README.md has an example" -}}
{{- end -}}

{{- $drain := $config.drain_timeout | default "45s" -}}
{{- $milliseconds := include "mnsrelay.milliseconds" (list "config.drain_timeout" $drain) | int64 -}}
{{- $needed := add .Values.preStopSleepSeconds (ceil (divf $milliseconds 1000) | int64) 10 -}}
{{- if lt (int64 .Values.terminationGracePeriodSeconds) $needed -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, and %d are needed: preStopSleepSeconds (%d), config.drain_timeout (%s) and 10 to settle and close. A pod that is killed before has its messages delivered twice: raise it, or lower config.drain_timeout" (int64 .Values.terminationGracePeriodSeconds) $needed (int64 .Values.preStopSleepSeconds) $drain) -}}
{{- end -}}

{{- $watch := get ($config.reload | default dict) "watch" | default false -}}
{{- if not (kindIs "bool" $watch) -}}
{{- fail (printf "config.reload.watch is %q: the chart decides by it whether pods are replaced, so write true or false" $watch) -}}
{{- end -}}

{{- $limit := dig "limits" "memory" "" .Values.resources -}}
{{- if $limit -}}
{{- $room := get ($config.in_flight | default dict) "bytes" | default "256MiB" -}}
{{- if gt (add (include "mnsrelay.bytes" (list "config.in_flight.bytes" $room) | int64) 67108864) (include "mnsrelay.bytes" (list "resources.limits.memory" $limit) | int64) -}}
{{- fail (printf "resources.limits.memory is %v, and config.in_flight.bytes lets %v of messages into it beside the 64Mi of the process: raise the one, or lower the other" $limit $room) -}}
{{- end -}}
{{- end -}}

{{- if and .Values.autoscaling.enabled .Values.keda.enabled -}}
{{- fail "autoscaling.enabled and keda.enabled are both true: KEDA makes a HorizontalPodAutoscaler of its own, so choose one" -}}
{{- end -}}
{{- range $name := list "autoscaling" "keda" -}}
{{- $scaling := get $.Values $name -}}
{{- if and $scaling.enabled (gt (int64 $scaling.minReplicas) (int64 $scaling.maxReplicas)) -}}
{{- fail (printf "%s.minReplicas is %d, more than %s.maxReplicas, %d" $name (int64 $scaling.minReplicas) $name (int64 $scaling.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.keda.enabled (not .Values.keda.prometheusAddress) -}}
{{- fail "keda.prometheusAddress is empty: write where Prometheus answers, http://prometheus-operated.monitoring:9090" -}}
{{- end -}}

{{- if and .Values.rrsa.oidcProviderArn (not .Values.rrsa.roleArn) -}}
{{- fail "rrsa.oidcProviderArn is set and rrsa.roleArn is not: write the role, acs:ram::ACCOUNT:role/NAME" -}}
{{- end -}}
{{- if and .Values.rrsa.roleArn (not .Values.rrsa.oidcProviderArn) (not .Values.serviceAccount.create) -}}
{{- fail (printf "rrsa.roleArn without rrsa.oidcProviderArn annotates the service account, and serviceAccount.create is false: annotate yours with pod-identity.alibabacloud.com/role-name: %s and leave rrsa.roleArn empty, or set rrsa.oidcProviderArn" (base .Values.rrsa.roleArn)) -}}
{{- end -}}

{{- include "mnsrelay.checkFiles" . -}}
{{- end -}}

{{- /* A file is lost with its pod unless it is on a volume, and two processes do not share one. */ -}}
{{- define "mnsrelay.checkFiles" -}}
{{- $several := or .Values.autoscaling.enabled .Values.keda.enabled (gt (int64 .Values.replicas) 1) -}}
{{- if and .Values.persistence.enabled $several -}}
{{- fail "persistence.enabled takes replicas: 1 and neither autoscaling nor keda: the volume is for files, and two processes do not write to one file. With several replicas use a sink of type mns for dead letters" -}}
{{- end -}}
{{- $mounted := printf "%s/" (trimSuffix "/" .Values.persistence.mountPath) -}}
{{- $dead := list -}}
{{- range .Values.config.sources -}}
{{- with .dead_letter -}}{{- $dead = append $dead . -}}{{- end -}}
{{- end -}}
{{- range $name, $sink := .Values.config.sinks -}}
{{- if and (eq (toString $sink.type) "file") (ne (toString $sink.path) "-") -}}
{{- $kept := and $.Values.persistence.enabled (hasPrefix $mounted (toString $sink.path)) -}}
{{- if and (has $name $dead) (not $kept) -}}
{{- fail (printf "config.sinks.%s takes dead letters in the file %s, which ends with its pod: set persistence.enabled, and a path below persistence.mountPath, %s" $name (toString $sink.path) $mounted) -}}
{{- end -}}
{{- if not $kept -}}
{{- $written := false -}}
{{- range $.Values.extraVolumeMounts -}}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) (toString $sink.path) -}}{{- $written = true -}}{{- end -}}
{{- end -}}
{{- if not $written -}}
{{- fail (printf "config.sinks.%s writes the file %s, and the container's file system cannot be written to: set persistence.enabled and a path below persistence.mountPath, %s, or mount a volume there with extraVolumes and extraVolumeMounts; path \"-\" is standard output" $name (toString $sink.path) $mounted) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The busiest source decides. How busy: the part of a batch that is filled, over keda.batchFill; 0 for a
       source that has received nothing of late, as its last batch says nothing. That is the most that pods are
       added or taken by. But pods are added only if messages are old at their receive as well, over
       keda.ageSeconds: full batches of fresh messages are no backlog, and old messages in batches that are not
       full are those that come again. And none is added while no pod reaches a sink that a delete waits for. */ -}}
{{- define "mnsrelay.scalingQuery" -}}
{{- $selector := include "mnsrelay.metricsSelector" . -}}
{{- $sinks := (include "mnsrelay.requiredSinks" . | fromJson).sinks -}}
{{- $names := list -}}
{{- range $sinks -}}{{- $names = append $names (regexQuoteMeta .) -}}{{- end -}}
{{- $busy := printf `avg by (source) (mnsrelay_batch_fill_ratio{%s} * (rate(mnsrelay_messages_received_total{%s}[5m]) > bool 0)) / %v` $selector $selector .Values.keda.batchFill -}}
{{- $late := printf `clamp_min(max by (source) (mnsrelay_oldest_message_age_seconds{%s}) / %v, 1)` $selector .Values.keda.ageSeconds -}}
{{- if $names -}}
{{- $late = printf `clamp_max(
  %s,
  scalar(1 + 1e9 * (min(max by (sink) (mnsrelay_sink_up{%s, sink=~%q})) or vector(0)))
)` $late $selector (join "|" $names) -}}
{{- end -}}
max(
  ({{ $busy | nindent 4 }}
  ) < ({{ $late | nindent 4 }}
  )
  or
  ({{ $late | nindent 4 }}
  ) <= ({{ $busy | nindent 4 }}
  )
)
{{- end -}}
