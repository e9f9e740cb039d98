{{- define "mnsrelay.podSpec" -}}
serviceAccountName: {{ include "mnsrelay.serviceAccountName" . | toYaml }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ toYaml . }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
{{- if or .Values.initContainers .Values.validate.enabled }}
initContainers:
  {{- with .Values.initContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if .Values.validate.enabled }}
  - name: validate
    {{- include "mnsrelay.container" (list . "validate") | nindent 4 }}
  {{- end }}
{{- end }}
containers:
  - name: mnsrelay
    {{- include "mnsrelay.container" (list . "run") | nindent 4 }}
    ports:
      - name: http
        containerPort: {{ include "mnsrelay.port" . }}
        protocol: TCP
      {{- with include "mnsrelay.adminPort" . }}
      - name: admin
        containerPort: {{ . }}
        protocol: TCP
      {{- end }}
    startupProbe:
      {{- include "mnsrelay.httpGet" (list . "/livez") | nindent 6 }}
      {{- toYaml .Values.startupProbe | nindent 6 }}
    livenessProbe:
      {{- include "mnsrelay.httpGet" (list . "/livez") | nindent 6 }}
      {{- toYaml .Values.livenessProbe | nindent 6 }}
    readinessProbe:
      {{- include "mnsrelay.httpGet" (list . "/readyz") | nindent 6 }}
      {{- toYaml .Values.readinessProbe | nindent 6 }}
    {{- if .Values.preStopSleepSeconds }}
    lifecycle:
      preStop:
        sleep:
          seconds: {{ .Values.preStopSleepSeconds }}
    {{- end }}
volumes:
  - name: config
    configMap:
      name: {{ include "mnsrelay.fullname" . | toYaml }}
  {{- range $i, $_ := .Values.secretFiles }}
  - name: secret-{{ $i }}
    secret:
      secretName: {{ .secretName | toYaml }}
      {{- with .items }}
      items:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      # The group is podSecurityContext.fsGroup.
      defaultMode: 0440
  {{- end }}
  {{- if .Values.rrsa.oidcProviderArn }}
  - name: rrsa
    projected:
      defaultMode: 0440
      sources:
        - serviceAccountToken:
            audience: sts.aliyuncs.com
            expirationSeconds: {{ .Values.rrsa.tokenExpirationSeconds }}
            path: token
  {{- end }}
  {{- if .Values.persistence.enabled }}
  - name: data
    persistentVolumeClaim:
      claimName: {{ .Values.persistence.existingClaim | default (include "mnsrelay.fullname" .) | toYaml }}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- $constraint := . }}
  {{- if not .labelSelector }}
  {{- $labels := merge (dict "app.kubernetes.io/component" "relay") (include "mnsrelay.selectorLabels" $ | fromYaml) }}
  {{- /* Only pods of one version are counted: those of the one before are about to go. */}}
  {{- $constraint = merge (dict "labelSelector" (dict "matchLabels" $labels) "matchLabelKeys" (list "pod-template-hash")) . }}
  {{- end }}
  - {{ toYaml $constraint | nindent 4 | trim }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* What the container and the init container have in common: both read the whole file, its secrets and
       variables included. The argument is (list CONTEXT COMMAND). */ -}}
{{- define "mnsrelay.container" -}}
{{- $command := index . 1 -}}
{{- with index . 0 -}}
image: {{ include "mnsrelay.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [{{ $command }}, --config, /etc/mnsrelay/mnsrelay.yaml]
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
{{- if or .Values.rrsa.oidcProviderArn .Values.secretEnv .Values.extraEnv }}
env:
  {{- if .Values.rrsa.oidcProviderArn }}
  - name: ALIBABA_CLOUD_ROLE_ARN
    value: {{ .Values.rrsa.roleArn | quote }}
  - name: ALIBABA_CLOUD_OIDC_PROVIDER_ARN
    value: {{ .Values.rrsa.oidcProviderArn | quote }}
  - name: ALIBABA_CLOUD_OIDC_TOKEN_FILE
    value: /var/run/secrets/mnsrelay-rrsa/token
  {{- end }}
  {{- range .Values.secretEnv }}
  - name: {{ .name | toYaml }}
    valueFrom:
      secretKeyRef:
        name: {{ .secretName | toYaml }}
        key: {{ .key | toYaml }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  # The folder, not the file in it: a file that is mounted alone never changes.
  - name: config
    mountPath: /etc/mnsrelay
    readOnly: true
  {{- range $i, $_ := .Values.secretFiles }}
  - name: secret-{{ $i }}
    mountPath: /run/secrets/{{ .name | default .secretName }}
    readOnly: true
  {{- end }}
  {{- if .Values.rrsa.oidcProviderArn }}
  # Not where ACK's add-on would mount its own.
  - name: rrsa
    mountPath: /var/run/secrets/mnsrelay-rrsa
    readOnly: true
  {{- end }}
  {{- if .Values.persistence.enabled }}
  - name: data
    mountPath: {{ .Values.persistence.mountPath | toYaml }}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
{{- end -}}
