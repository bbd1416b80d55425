{{/*
What a process is set to. Plain settings come together in one map, later ones over earlier ones: what the
chart knows, `global.settings` as far as the service has such a setting, `services.NAME.settings`, and
`services.NAME.extraEnv`.
Secrets are files below /run/secrets, and a pod gets only those of its own role.
*/}}

{{/* The settings that a service has (files/settings.json), as a map of name to declaration. */}}
{{- define "caracal.known" -}}
{{- $known := dict }}
{{- $name := .name }}
{{- range (.root.Files.Get "files/settings.json" | fromJson).settings }}
{{- if has $name .services }}{{ $_ := set $known .name . }}{{ end }}
{{- end }}
{{- toJson $known }}
{{- end }}

{{/* Every plain setting of a service, as JSON. */}}
{{- define "caracal.settings" -}}
{{- $values := .root.Values }}
{{- $service := get $values.services .name }}
{{- $all := dict
  "CARACAL_MODE" $values.global.mode
  "HOST" $values.global.listenAddress
  "LOG_LEVEL" $values.global.logLevel
  "CARACAL_HOME" "/var/lib/caracal"
  "AUDIT_REPLAY_DIR" "/var/lib/caracal/audit-replay" }}
{{- with $values.global.otelExporterOtlpEndpoint }}{{ $_ := set $all "OTEL_EXPORTER_OTLP_ENDPOINT" . }}{{ end }}
{{- if not (kindIs "invalid" $service.dbPoolMax) }}{{ $_ := set $all "DB_POOL_MAX" $service.dbPoolMax }}{{ end }}
{{- if has .name (list "api" "coordinator") }}
{{- $_ := set $all "PORT" $service.port }}
{{- /* Readiness decides here who is sent requests, and authority must be taken away all the same. */}}
{{- $_ := set $all "READY_WITHOUT_REDIS" true }}
{{- end }}
{{- if has .name (list "sts" "gateway" "coordinator") }}{{ $_ := set $all "ISSUER_URL" (include "caracal.issuer" .root) }}{{ end }}
{{- if eq .name "gateway" }}
{{- $_ := set $all "STS_URL" (include "caracal.url" (dict "root" .root "name" "sts")) }}
{{- if $service.tlsSecretName }}
{{- $_ := set $all "TLS_CERT_FILE" "/run/tls/tls.crt" }}
{{- $_ := set $all "TLS_KEY_FILE" "/run/tls/tls.key" }}
{{- end }}
{{- end }}
{{- if eq .name "audit" }}{{ $_ := set $all "AUDIT_EXPORT_TMP_DIR" "/var/lib/caracal/audit-export" }}{{ end }}
{{- if eq .name "coordinator" }}
{{- $_ := set $all "AGENT_COORDINATOR_SCOPE" $service.requiredScope }}
{{- $_ := set $all "SESSION_RETENTION_DAYS" $service.sessionRetentionDays }}
{{- $receipts := $values.secrets.idempotency }}
{{- $_ := set $all "IDEMPOTENCY_RETENTION_SECONDS" $receipts.retentionSeconds }}
{{- $_ := set $all "GENERATED_IDEMPOTENCY_RETENTION_SECONDS" $receipts.generatedRetentionSeconds }}
{{- $_ := set $all "IDEMPOTENCY_MAX_RECEIPTS_PER_SCOPE" $receipts.maxReceiptsPerScope }}
{{- $_ := set $all "COORDINATOR_BODY_LIMIT_BYTES" $receipts.bodyLimitBytes }}
{{- end }}
{{- $known := include "caracal.known" . | fromJson }}
{{- range $setting, $value := $values.global.settings }}
{{- if hasKey $known $setting }}{{ $_ := set $all $setting $value }}{{ end }}
{{- end }}
{{- range $setting, $value := $service.settings }}{{ $_ := set $all $setting $value }}{{ end }}
{{- range $service.extraEnv }}
{{- if hasKey . "value" }}{{ $_ := set $all .name .value }}{{ else }}{{ $_ := unset $all .name }}{{ end }}
{{- end }}
{{- $texts := dict }}
{{- range $setting, $value := $all }}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $texts $setting (include "caracal.text" $value) }}{{ end }}
{{- end }}
{{- toJson $texts }}
{{- end }}

{{/* The secrets of a service, as JSON: setting, name of the file, Secret and key that it comes from. */}}
{{- define "caracal.secrets" -}}
{{- $values := .root.Values }}
{{- $runtime := $values.secrets.runtimeSecretName }}
{{- $keys := list
  (list "DATABASE_URL" (printf "%sDatabaseUrl" .name))
  (list "REDIS_URL" "redisUrl")
  (list "AUDIT_HMAC_KEY" "auditHmacKey") }}
{{- if has .name (list "api" "gateway") }}{{ $keys = append $keys (list "CARACAL_ADMIN_TOKEN" "caracalAdminToken") }}{{ end }}
{{- if has .name (list "api" "sts" "audit") }}
{{- $keys = append $keys (list "SECRET_STORE_KEK" "secretStoreKek") }}
{{- if $values.secrets.kekRotation }}{{ $keys = append $keys (list "SECRET_STORE_KEK_PREVIOUS" "secretStoreKekPrevious") }}{{ end }}
{{- end }}
{{- if ne .name "audit" }}{{ $keys = append $keys (list "STREAMS_HMAC_KEY" "streamsHmacKey") }}{{ end }}
{{- if has .name (list "sts" "gateway") }}{{ $keys = append $keys (list "GATEWAY_STS_HMAC_KEY" "gatewayStsHmacKey") }}{{ end }}
{{- if eq .name "coordinator" }}
{{- $keys = append $keys (list "CARACAL_COORDINATOR_TOKEN" "caracalCoordinatorToken") }}
{{- $keys = append $keys (list "IDEMPOTENCY_HMAC_KEY" "idempotencyHmacKey") }}
{{- if $values.secrets.idempotency.keyRotation }}{{ $keys = append $keys (list "IDEMPOTENCY_HMAC_KEY_PREVIOUS" "idempotencyHmacKeyPrevious") }}{{ end }}
{{- end }}
{{- $all := list }}
{{- range $keys }}
{{- $all = append $all (dict "setting" (index . 0) "file" (index . 1) "secretName" $runtime "key" (index . 1)) }}
{{- end }}
{{- $bearer := $values.secrets.metricsBearer }}
{{- $all = append $all (dict "setting" "METRICS_BEARER" "file" "metricsBearer" "secretName" ($bearer.secretName | default $runtime) "key" ($bearer.key | default "metricsBearer")) }}
{{- $own := dict "sts" (list "STS_ADMIN_TOKEN" "stsAdminToken") "audit" (list "AUDIT_ADMIN_TOKEN" "auditAdminToken") }}
{{- with get $own .name }}
{{- $from := get $values.secrets (index . 1) }}
{{- if or $from.secretName $from.key }}
{{- $all = append $all (dict "setting" (index . 0) "file" (index . 1) "secretName" ($from.secretName | default $runtime) "key" ($from.key | default (index . 1))) }}
{{- end }}
{{- end }}
{{- range $setting, $from := (get $values.services .name).secretSettings }}
{{- $all = append $all (dict "setting" $setting "file" $setting "secretName" ($from.secretName | default $runtime) "key" $from.key) }}
{{- end }}
{{- dict "secrets" $all | toJson }}
{{- end }}

{{/* `env` of the container. */}}
{{- define "caracal.env" -}}
{{- $settings := include "caracal.settings" . | fromJson }}
{{- range (include "caracal.secrets" . | fromJson).secrets }}
{{- $_ := set $settings (printf "%s_FILE" .setting) (printf "/run/secrets/%s" .file) }}
{{- end }}
{{- range $setting, $value := $settings }}
- name: {{ $setting }}
  value: {{ $value | quote }}
{{- end }}
{{- range (get .root.Values.services .name).extraEnv }}
{{- if not (hasKey . "value") }}
- {{ toYaml . | nindent 2 | trim }}
{{- end }}
{{- end }}
{{- end }}

{{/* The volume of the secrets of a pod: only its own keys. */}}
{{- define "caracal.secretVolume" -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range (include "caracal.secrets" . | fromJson).secrets }}
      - secret:
          name: {{ .secretName }}
          items:
            - key: {{ .key }}
              path: {{ .file }}
      {{- end }}
{{- end }}
