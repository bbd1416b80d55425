{{/* Names, labels and images. Each template below takes (dict "root" $ "name" "sts"), `root` being the top scope. */}}

{{/* The services of this chart, in the order in which they are listed everywhere. */}}
{{- define "caracal.roles" -}}api sts gateway audit coordinator{{- end }}

{{- define "caracal.fullname" -}}
{{- printf "%s-caracal-%s" .root.Release.Name .name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "caracal.tag" -}}
{{- printf "v%s" (.Values.global.tag | default .Chart.AppVersion | trimPrefix "v") }}
{{- end }}

{{- define "caracal.everyPod" -}}
app.kubernetes.io/name: caracal
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "caracal.selector" -}}
{{ include "caracal.everyPod" .root }}
app.kubernetes.io/component: {{ .name }}
{{- end }}

{{- define "caracal.labels" -}}
{{ include "caracal.selector" . }}
app.kubernetes.io/part-of: caracal
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{/* One image holds every role: `global.registry` with the tag, unless the service names another. */}}
{{- define "caracal.image" -}}
{{- $own := (get .root.Values.services .name | default dict).image }}
{{- if $own -}}
{{ $own }}
{{- else if .root.Values.global.registry -}}
{{ .root.Values.global.registry | trimSuffix "/" }}/caracal:{{ include "caracal.tag" .root }}
{{- else -}}
caracal:{{ include "caracal.tag" .root }}
{{- end }}
{{- end }}

{{- define "caracal.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (printf "%s-caracal" .Release.Name) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* Where the others find a service. */}}
{{- define "caracal.url" -}}
{{- $service := get .root.Values.services .name }}
{{- $service.internalUrl | default (printf "http://%s:%d" (include "caracal.fullname" .) (int $service.port)) }}
{{- end }}

{{- define "caracal.issuer" -}}
{{- .Values.services.sts.issuerUrl | default (include "caracal.url" (dict "root" . "name" "sts")) }}
{{- end }}

{{/* Whether a role keeps its undelivered evidence on a volume of its own. */}}
{{- define "caracal.isStateful" -}}
{{- if and .root.Values.replayPersistence.enabled (has .name (list "sts" "gateway")) }}true{{ end }}
{{- end }}

{{/* A value as the text of an environment variable: numbers without exponent, lists with commas. */}}
{{- define "caracal.text" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end }}
{{- else if kindIs "slice" . -}}
{{ join "," . }}
{{- else -}}
{{ toString . }}
{{- end }}
{{- end }}
