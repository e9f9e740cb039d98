{{- /* Names and labels. What is text is written with toYaml, which quotes what YAML would read as something else: a
       release may be called 123, a namespace too. */ -}}

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
app.kubernetes.io/name: {{ include "mnsrelay.name" . | toYaml }}
app.kubernetes.io/instance: {{ .Release.Name | toYaml }}
{{- end -}}

{{- define "mnsrelay.version" -}}
{{- .Values.image.tag | default .Chart.AppVersion | trunc 63 | trimSuffix "-" | quote -}}
{{- end -}}

{{- define "mnsrelay.labels" -}}
{{ include "mnsrelay.selectorLabels" . }}
app.kubernetes.io/version: {{ include "mnsrelay.version" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- /* Labels of an object; the argument is (list CONTEXT LABELS-OF-ITS-OWN). */ -}}
{{- define "mnsrelay.labelsWith" -}}
{{ include "mnsrelay.labels" (index . 0) }}
{{- with merge (dict) (index . 1) (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Without the chart's version: another chart that changes nothing in the pods leaves them alone. */ -}}
{{- define "mnsrelay.podLabels" -}}
{{ include "mnsrelay.selectorLabels" . }}
app.kubernetes.io/component: relay
app.kubernetes.io/version: {{ include "mnsrelay.version" . }}
{{- $injection := dict -}}
{{- /* Of ACK's add-on: a pod with it needs no namespace with it. */ -}}
{{- if include "mnsrelay.rrsaByWebhook" . -}}{{- $injection = dict "pod-identity.alibabacloud.com/injection" "on" -}}{{- end -}}
{{- with merge (dict) .Values.podLabels .Values.commonLabels $injection }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* "true" where ACK's add-on brings token and variables into the pod. */ -}}
{{- define "mnsrelay.rrsaByWebhook" -}}
{{- if and .Values.rrsa.roleArn (not .Values.rrsa.oidcProviderArn) -}}true{{- end -}}
{{- end -}}

{{- define "mnsrelay.metadata" -}}
{{ include "mnsrelay.metadataWith" (list . (dict)) }}
{{- end -}}

{{- /* The same with labels of its own: (list CONTEXT LABELS). */ -}}
{{- define "mnsrelay.metadataWith" -}}
name: {{ include "mnsrelay.fullname" (index . 0) | toYaml }}
namespace: {{ (index . 0).Release.Namespace | toYaml }}
labels:
  {{- include "mnsrelay.labelsWith" . | nindent 2 }}
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

{{- /* The port of server.admin_listen, as far as others reach it; empty: there is none, or on loopback, where kubectl
       port-forward reaches it. */ -}}
{{- define "mnsrelay.adminPort" -}}
{{- $listen := get (.Values.config.server | default dict) "admin_listen" | default "" -}}
{{- if and $listen (not (regexMatch `^(127\.[0-9.]+|\[::1\]|localhost):[1-9][0-9]*$` $listen)) -}}
{{- if not (regexMatch `^(0\.0\.0\.0|\[::\])?:[1-9][0-9]*$` $listen) -}}
{{- fail (printf "config.server.admin_listen is %q: the chart makes a port of it, so write a colon and a port, \":8081\", or \"127.0.0.1:8081\" for kubectl port-forward alone" $listen) -}}
{{- end -}}
{{- regexFind `[0-9]+$` $listen -}}
{{- end -}}
{{- end -}}

{{- /* HTTPS where mnsrelay has a certificate, HTTP where it has none. */ -}}
{{- define "mnsrelay.scheme" -}}
{{- $file := get (get (.Values.config.server | default dict) "tls" | default dict) "cert_file" | default "" | toString -}}
{{- if contains "${" $file -}}
{{- fail (printf "config.server.tls.cert_file is %q: the chart decides by it whether probes speak TLS, so write the path" $file) -}}
{{- end -}}
{{- if $file -}}HTTPS{{- else -}}HTTP{{- end -}}
{{- end -}}

{{- /* A probe of the kubelet, which does not check the certificate; the argument is (list CONTEXT PATH). */ -}}
{{- define "mnsrelay.httpGet" -}}
httpGet:
  path: {{ index . 1 }}
  port: http
  {{- if eq (include "mnsrelay.scheme" (index . 0)) "HTTPS" }}
  scheme: HTTPS
  {{- end }}
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
{{- $format := get (.Values.config.log | default dict) "format" -}}
{{- pick .Values.config "server" "ledger" "tracing" "reload" | merge (dict "format" $format) | toYaml | sha256sum -}}
{{- else -}}
{{- include "mnsrelay.config" . | sha256sum -}}
{{- end -}}
{{- end -}}

{{- /* What sources and routes lead to, as a list of JSON. A target is a name, or a mapping; a list of them, or
       one alone. */ -}}
{{- define "mnsrelay.targets" -}}
{{- $targets := list -}}
{{- range .Values.config.sources -}}
{{- if kindIs "slice" .to -}}{{- $targets = concat $targets .to -}}{{- else if .to -}}{{- $targets = append $targets .to -}}{{- end -}}
{{- end -}}
{{- range .Values.config.routes -}}
{{- if kindIs "slice" .to -}}{{- $targets = concat $targets .to -}}{{- else if .to -}}{{- $targets = append $targets .to -}}{{- end -}}
{{- end -}}
{{- $targets | toJson -}}
{{- end -}}

{{- /* The names of the sinks that a delete waits for, as {"sinks": [...]}. */ -}}
{{- define "mnsrelay.requiredSinks" -}}
{{- $names := list -}}
{{- range include "mnsrelay.targets" . | fromJsonArray -}}
{{- $name := . -}}
{{- $required := true -}}
{{- if kindIs "map" . -}}
{{- $name = .sink -}}
{{- $required = dig "required" true . -}}
{{- end -}}
{{- if or (contains "${" (toString $name)) (contains "${" (toString $required)) -}}
{{- fail (printf "keda.enabled: a route goes to sink %q with required %q: no pod is added while a sink that a delete waits for is down, so write both out" (toString $name) (toString $required)) -}}
{{- end -}}
{{- /* As text it means the same to mnsrelay. */ -}}
{{- if ne (lower (toString $required)) "false" -}}{{- $names = append $names (toString $name) -}}{{- end -}}
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
{{- $bytes := include "mnsrelay.bytes" (list "config.in_flight.bytes" $room) | int64 -}}
{{- $more := "" -}}
{{- range include "mnsrelay.targets" . | fromJsonArray -}}
{{- if and (kindIs "map" .) (not $more) -}}
{{- if ne (lower (toString (dig "required" true .))) "true" -}}
{{- $bytes = div (mul $bytes 3) 2 -}}
{{- $more = ", and half as much again on their way to sinks that are not required," -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if gt (add $bytes 67108864) (include "mnsrelay.bytes" (list "resources.limits.memory" $limit) | int64) -}}
{{- fail (printf "resources.limits.memory is %v, and config.in_flight.bytes lets %v of messages into it%s beside the 64Mi of the process: raise the one, or lower the other" $limit $room $more) -}}
{{- end -}}
{{- end -}}

{{- include "mnsrelay.checkNames" . -}}

{{- if and .Values.autoscaling.enabled (not (dig "requests" "cpu" "" .Values.resources)) (not (dig "limits" "cpu" "" .Values.resources)) -}}
{{- fail "autoscaling.enabled goes by the part that is used of resources.requests.cpu, which is not set: write it, or use keda" -}}
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
{{- if and (include "mnsrelay.rrsaByWebhook" .) (not .Values.serviceAccount.create) -}}
{{- fail (printf "rrsa.roleArn without rrsa.oidcProviderArn annotates the service account, and serviceAccount.create is false: annotate yours with pod-identity.alibabacloud.com/role-name: %s, write pod-identity.alibabacloud.com/injection: \"on\" under podLabels and leave rrsa.roleArn empty, or set rrsa.oidcProviderArn" (base .Values.rrsa.roleArn)) -}}
{{- end -}}

{{- include "mnsrelay.checkFiles" . -}}
{{- end -}}

{{- /* Names that would stand twice in one object, which keeps either of them, or refuses it. */ -}}
{{- define "mnsrelay.checkNames" -}}
{{- $own := keys (include "mnsrelay.labels" . | fromYaml) -}}
{{- $own = append $own "app.kubernetes.io/component" -}}
{{- $labels := dict "commonLabels" .Values.commonLabels "podLabels" .Values.podLabels "serviceMonitor.labels" .Values.serviceMonitor.labels "prometheusRule.labels" .Values.prometheusRule.labels "dashboard.labels" .Values.dashboard.labels -}}
{{- range $values, $set := $labels -}}
{{- range $label, $_ := $set -}}
{{- if has $label $own -}}
{{- fail (printf "%s has the label %s, which is the chart's own: objects are selected by these, so choose another, or set nameOverride" $values $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if or (hasKey .Values.podAnnotations "checksum/config") (hasKey .Values.persistence.annotations "helm.sh/resource-policy") -}}
{{- fail "podAnnotations has checksum/config, or persistence.annotations helm.sh/resource-policy, which are the chart's own: leave them out" -}}
{{- end -}}

{{- $folders := list -}}
{{- range .Values.secretFiles -}}
{{- $folder := .name | default .secretName -}}
{{- if has $folder $folders -}}
{{- fail (printf "secretFiles has two for the folder /run/secrets/%s: give one of them another name" $folder) -}}
{{- end -}}
{{- $folders = append $folders $folder -}}
{{- end -}}

{{- $variables := list -}}
{{- if .Values.rrsa.oidcProviderArn -}}
{{- $variables = list "ALIBABA_CLOUD_ROLE_ARN" "ALIBABA_CLOUD_OIDC_PROVIDER_ARN" "ALIBABA_CLOUD_OIDC_TOKEN_FILE" -}}
{{- end -}}
{{- range concat .Values.secretEnv .Values.extraEnv -}}
{{- if has .name $variables -}}
{{- fail (printf "the variable %s is set twice, by rrsa, secretEnv or extraEnv: leave one of them out" .name) -}}
{{- end -}}
{{- $variables = append $variables .name -}}
{{- end -}}
{{- end -}}

{{- /* A file is lost with its pod unless it is on a volume, and two processes do not share one. */ -}}
{{- define "mnsrelay.checkFiles" -}}
{{- $several := or .Values.autoscaling.enabled .Values.keda.enabled (gt (int64 .Values.replicas) 1) -}}
{{- if and .Values.persistence.enabled $several -}}
{{- fail "persistence.enabled takes replicas: 1 and neither autoscaling nor keda: the volume is for files, and two processes do not write to one file. With several replicas use a sink of type mns for dead letters" -}}
{{- end -}}
{{- $own := list -}}
{{- range .Values.extraVolumes -}}
{{- if or (hasKey . "emptyDir") (hasKey . "ephemeral") -}}{{- $own = append $own .name -}}{{- end -}}
{{- end -}}
{{- $mounted := printf "%s/" (trimSuffix "/" .Values.persistence.mountPath) -}}
{{- $dead := list -}}
{{- range $name, $source := .Values.config.sources -}}
{{- with $source.dead_letter -}}
{{- if contains "${" (toString .) -}}
{{- fail (printf "config.sources.%s.dead_letter is %q: the chart decides by it which files need a volume, so write the sink's name" $name .) -}}
{{- end -}}
{{- $dead = append $dead (toString .) -}}
{{- end -}}
{{- end -}}
{{- range $name, $sink := .Values.config.sinks -}}
{{- if contains "${" (toString $sink.type) -}}
{{- fail (printf "config.sinks.%s.type is %q: the chart decides by it whether the sink needs a volume, so write the type" $name $sink.type) -}}
{{- end -}}
{{- if and (eq (toString $sink.type) "file") (ne (toString $sink.path) "-") -}}
{{- if and (has $name $dead) $several -}}
{{- fail (printf "config.sinks.%s takes dead letters in the file %s, which takes replicas: 1 and neither autoscaling nor keda: two processes do not write to one file. With several replicas use a sink of type mns for dead letters" $name (toString $sink.path)) -}}
{{- end -}}
{{- $kept := and $.Values.persistence.enabled (hasPrefix $mounted (toString $sink.path)) -}}
{{- if and (has $name $dead) (not $kept) -}}
{{- fail (printf "config.sinks.%s takes dead letters in the file %s, which ends with its pod: set persistence.enabled, and a path below persistence.mountPath, %s" $name (toString $sink.path) $mounted) -}}
{{- end -}}
{{- if not $kept -}}
{{- $mount := dict "mountPath" "" -}}
{{- range $.Values.extraVolumeMounts -}}
{{- if and (hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) (toString $sink.path)) (gt (len .mountPath) (len $mount.mountPath)) -}}
{{- $mount = . -}}
{{- end -}}
{{- end -}}
{{- if and $mount.mountPath $several (not $mount.subPathExpr) (not (has $mount.name $own)) -}}
{{- fail (printf "config.sinks.%s writes the file %s to the volume %s, which several pods would have together, and two processes do not write to one file: set replicas: 1, or give each pod a folder by subPathExpr, or a volume that is its own, emptyDir or ephemeral" $name (toString $sink.path) $mount.name) -}}
{{- end -}}
{{- if not $mount.mountPath -}}
{{- fail (printf "config.sinks.%s writes the file %s, and the container's file system cannot be written to: set persistence.enabled and a path below persistence.mountPath, %s, or mount a volume there with extraVolumes and extraVolumeMounts; path \"-\" is standard output" $name (toString $sink.path) $mounted) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The ports that config names, as {"ports": ["443"]}, and whether it needs the metadata server. Only values that are
       addresses are read: what looks like one in a header or a condition opens nothing. Errors tell where an address
       is and not what it is, since it may hold a password. */ -}}
{{- define "mnsrelay.egress" -}}
{{- $config := .Values.config -}}
{{- $addresses := dict "config.ledger.url" (get ($config.ledger | default dict) "url") "config.tracing.otlp_endpoint" (get ($config.tracing | default dict) "otlp_endpoint") -}}
{{- $metadata := false -}}
{{- range $group := list "sources" "sinks" -}}
{{- range $name, $end := get $config $group -}}
{{- $path := printf "config.%s.%s" $group $name -}}
{{- range $key := list "endpoint" "url" -}}{{- $_ := set $addresses (printf "%s.%s" $path $key) (get $end $key) -}}{{- end -}}
{{- range $i, $url := get $end "urls" | default list -}}{{- $_ := set $addresses (printf "%s.urls[%d]" $path $i) $url -}}{{- end -}}
{{- /* A role is taken on with keys that may be a role's, and so on: nobody has sixteen. */ -}}
{{- $keys := get $end "credentials" | default dict -}}
{{- $path = printf "%s.credentials" $path -}}
{{- range until 16 -}}
{{- if eq (get $keys "type" | toString) "ecs_ram_role" -}}{{- $metadata = true -}}{{- end -}}
{{- range $key := list "endpoint" "uri" -}}{{- $_ := set $addresses (printf "%s.%s" $path $key) (get $keys $key) -}}{{- end -}}
{{- $keys = get $keys "base" | default dict -}}
{{- $path = printf "%s.base" $path -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $default := dict "http" "80" "https" "443" "amqp" "5672" "amqps" "5671" "redis" "6379" "rediss" "6379" -}}
{{- $ports := list "443" -}}
{{- if $metadata -}}{{- $ports = append $ports "80" -}}{{- end -}}
{{- range $path, $address := $addresses -}}
{{- /* scheme://user:password@host:port/path, and _REF_ for what is not known before the pod starts. */ -}}
{{- $text := regexReplaceAll `\$\{[^}]*\}` ($address | default "" | toString) "_REF_" -}}
{{- if contains "://" $text -}}
{{- $scheme := regexFind `^[^:]*` $text | lower -}}
{{- $host := regexReplaceAll `^[^:]*://` $text "" | regexFind `^[^/?#]*` | regexFind `[^@]*$` -}}
{{- $port := regexFind `:[^:\]]*$` $host | trimPrefix ":" -}}
{{- if and (not $port) (not (hasSuffix "_REF_" $host)) -}}{{- $port = get $default $scheme -}}{{- end -}}
{{- if not (regexMatch `^[0-9]+$` $port) -}}
{{- fail (printf "networkPolicy.enabled: the port of %s is not written there, so the chart cannot allow it: write the number, https://host:8443" $path) -}}
{{- end -}}
{{- $port = regexReplaceAll `^0+` $port "" -}}
{{- if or (not (regexMatch `^[0-9]{1,5}$` $port)) (gt (atoi $port) 65535) -}}
{{- fail (printf "networkPolicy.enabled: the port of %s is not one: write a number from 1 to 65535" $path) -}}
{{- end -}}
{{- $ports = append $ports $port -}}
{{- end -}}
{{- end -}}
{{- dict "ports" ($ports | uniq | sortAlpha) "metadata" $metadata | toJson -}}
{{- end -}}

{{- /* The busiest source decides. How busy: the part of a batch that is filled, over keda.batchFill; 0 for a
       source that has received nothing of late, as its last batch says nothing, or nothing yet. That is the most that pods are
       added or taken by. But pods are added only if messages are old at their receive as well, over
       keda.ageSeconds: full batches of fresh messages are no backlog, and old messages in batches that are not
       full are those that come again. And none is added while no pod reaches a sink that a delete waits for. */ -}}
{{- define "mnsrelay.scalingQuery" -}}
{{- $selector := include "mnsrelay.metricsSelector" . -}}
{{- $sinks := (include "mnsrelay.requiredSinks" . | fromJson).sinks -}}
{{- $names := list -}}
{{- range $sinks -}}{{- $names = append $names (regexQuoteMeta .) -}}{{- end -}}
{{- $busy := printf `avg by (source) (mnsrelay_batch_fill_ratio{%[1]s} * (rate(mnsrelay_messages_received_total{%[1]s}[5m]) > bool 0) or 0 * rate(mnsrelay_messages_received_total{%[1]s}[5m])) / %[2]v` $selector .Values.keda.batchFill -}}
{{- $late := printf `clamp_min(max by (source) (mnsrelay_oldest_message_age_seconds{%[1]s} or 0 * mnsrelay_messages_received_total{%[1]s}) / %[2]v, 1)` $selector .Values.keda.ageSeconds -}}
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
