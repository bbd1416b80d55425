{{/* What every pod of this chart has in common. Each takes (dict "root" $ "name" "sts"). */}}

{{/* The restricted profile of pod security. */}}
{{- define "caracal.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "caracal.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What the Gateway has before the paths of probes and metrics, when it was told so. */}}
{{- define "caracal.operatorPrefix" -}}
{{- if eq .name "gateway" -}}
{{- (include "caracal.settings" . | fromJson).GATEWAY_OPERATOR_PREFIX -}}
{{- end -}}
{{- end }}

{{/* A probe. The default timeout of one second is shorter than what a service takes to ask its stores. */}}
{{- define "caracal.probe" -}}
httpGet:
  path: {{ include "caracal.operatorPrefix" . }}{{ .path }}
  port: http
  {{- if and (eq .name "gateway") .root.Values.services.gateway.tlsSecretName }}
  scheme: HTTPS
  {{- end }}
timeoutSeconds: 3
{{- end }}

{{- define "caracal.affinity" -}}
{{- if .root.Values.scheduling.affinity }}
{{- toYaml .root.Values.scheduling.affinity }}
{{- else -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "caracal.selector" . | nindent 12 }}
{{- end }}
{{- end }}

{{- define "caracal.spread" -}}
{{- if .root.Values.scheduling.topologySpreadConstraints }}
{{- toYaml .root.Values.scheduling.topologySpreadConstraints }}
{{- else -}}
- maxSkew: 1
  topologyKey: topology.kubernetes.io/zone
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "caracal.selector" . | nindent 6 }}
{{- end }}
{{- end }}

{{- define "caracal.podMeta" -}}
labels:
  {{- include "caracal.labels" . | nindent 2 }}
  {{- with .root.Values.global.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  {{- if .root.Values.secrets.create }}
  checksum/secrets: {{ toJson .root.Values.secrets | sha256sum }}
  {{- end }}
  kubectl.kubernetes.io/default-container: caracal-{{ .name }}
  {{- with .root.Values.global.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* `spec` of the pod of a service. */}}
{{- define "caracal.podSpec" -}}
{{- $service := get .root.Values.services .name -}}
serviceAccountName: {{ include "caracal.serviceAccount" .root }}
automountServiceAccountToken: {{ .root.Values.serviceAccount.automountToken }}
enableServiceLinks: false
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.scheduling.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
terminationGracePeriodSeconds: {{ .root.Values.scheduling.terminationGracePeriodSeconds }}
securityContext:
  {{- include "caracal.podSecurity" . | nindent 2 }}
affinity:
  {{- include "caracal.affinity" . | nindent 2 }}
topologySpreadConstraints:
  {{- include "caracal.spread" . | nindent 2 }}
containers:
  - name: caracal-{{ .name }}
    image: {{ include "caracal.image" . }}
    imagePullPolicy: {{ .root.Values.global.imagePullPolicy }}
    args: [serve, {{ .name }}]
    ports:
      - name: http
        containerPort: {{ $service.port }}
    env:
      {{- include "caracal.env" . | trim | nindent 6 }}
    {{- with $service.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- include "caracal.containerSecurity" . | nindent 6 }}
    resources:
      {{- toYaml $service.resources | nindent 6 }}
    lifecycle:
      preStop:
        sleep:
          seconds: {{ .root.Values.scheduling.preStopSleepSeconds }}
    startupProbe:
      {{- include "caracal.probe" (merge (dict "path" "/health") .) | nindent 6 }}
      periodSeconds: 5
      failureThreshold: 30
    livenessProbe:
      {{- include "caracal.probe" (merge (dict "path" "/health") .) | nindent 6 }}
      initialDelaySeconds: 10
      periodSeconds: 10
    readinessProbe:
      {{- include "caracal.probe" (merge (dict "path" "/ready") .) | nindent 6 }}
      initialDelaySeconds: 10
      periodSeconds: 10
    volumeMounts:
      - name: secrets
        mountPath: /run/secrets
        readOnly: true
      - name: replay
        mountPath: /var/lib/caracal
      - name: tmp
        mountPath: /tmp
      {{- if eq .name "audit" }}
      - name: export
        mountPath: /var/lib/caracal/audit-export
      {{- end }}
      {{- if and (eq .name "gateway") $service.tlsSecretName }}
      - name: tls
        mountPath: /run/tls
        readOnly: true
      {{- end }}
      {{- with $service.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  {{- include "caracal.secretVolume" . | nindent 2 }}
  {{- if not (include "caracal.isStateful" .) }}
  - name: replay
    emptyDir: {}
  {{- end }}
  - name: tmp
    emptyDir:
      sizeLimit: 64Mi
  {{- if eq .name "audit" }}
  - name: export
    emptyDir:
      sizeLimit: {{ $service.exportScratchSizeLimit }}
  {{- end }}
  {{- if and (eq .name "gateway") $service.tlsSecretName }}
  - name: tls
    secret:
      secretName: {{ $service.tlsSecretName }}
      defaultMode: 0440
  {{- end }}
  {{- with $service.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
