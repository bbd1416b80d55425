{{/* What would not work, or not be safe: every mistake is told at once, with what to do. */}}
{{- define "caracal.mistakes" -}}
{{- $values := .Values }}
{{- $stable := eq $values.global.mode "stable" }}
{{- $published := ne $values.global.mode "dev" }}
{{- $secrets := $values.secrets }}
{{- $policy := $values.networkPolicy }}
{{- $all := list }}

{{- if and $stable $secrets.create }}
{{- $all = append $all "secrets.create is for evaluation: with global.mode stable, bring a Secret of your own and name it in secrets.runtimeSecretName" }}
{{- end }}
{{- if and $secrets.create (not $values.global.evaluation) }}
{{- $all = append $all "secrets.create puts secrets into the release: set global.evaluation=true if this is only a trial, or bring a Secret of your own" }}
{{- end }}
{{- if $secrets.create }}
{{- range $key := list $secrets.database.passwordKey $secrets.redis.passwordKey "caracalAdminToken" "caracalCoordinatorToken" "secretStoreKek" "auditHmacKey" "streamsHmacKey" "idempotencyHmacKey" "gatewayStsHmacKey" "metricsBearer" }}
{{- if not (get $secrets.plaintext $key) }}
{{- $all = append $all (printf "secrets.plaintext.%s is required with secrets.create" $key) }}
{{- end }}
{{- end }}
{{- end }}

{{- if $stable }}
{{- if eq $secrets.database.host "postgres.default.svc.cluster.local" }}
{{- $all = append $all "secrets.database.host is still the default: name your Postgres" }}
{{- end }}
{{- if eq $secrets.redis.host "redis.default.svc.cluster.local" }}
{{- $all = append $all "secrets.redis.host is still the default: name your Redis" }}
{{- end }}
{{- if and $policy.enabled (not $policy.dnsEgress) (not $policy.allowOpenDns) }}
{{- $all = append $all "networkPolicy lets nobody ask DNS: give networkPolicy.dnsEgress (the peers that answer), or allowOpenDns" }}
{{- end }}
{{- $open := list }}
{{- range $name, $ingress := $values.ingress }}
{{- if $ingress.enabled }}{{ $open = append $open $name }}{{ end }}
{{- end }}
{{- if and $open $policy.enabled (not $policy.extraIngress) }}
{{- $all = append $all (printf "ingress.%s is enabled, and networkPolicy lets no ingress controller in: give networkPolicy.extraIngress" (join ", ingress." (sortAlpha $open))) }}
{{- end }}
{{- if not $values.services.sts.issuerUrl }}
{{- $all = append $all "services.sts.issuerUrl is required: it is the iss of every mandate, and cannot be changed later" }}
{{- end }}
{{- if not $values.global.registry }}
{{- $all = append $all "global.registry is required: the registry that holds the image built from deploy/container" }}
{{- end }}
{{- end }}

{{- range $name, $ingress := $values.ingress }}
{{- if and $ingress.enabled (not $ingress.host) }}
{{- $all = append $all (printf "ingress.%s.host is required" $name) }}
{{- end }}
{{- end }}
{{- if or $values.services.web.enabled $values.ingress.web.enabled }}
{{- $all = append $all "the web console is not part of this release: leave services.web.enabled and ingress.web.enabled false" }}
{{- end }}
{{- if $values.control.enabled }}
{{- $all = append $all "the Control endpoint is not part of this release: leave control.enabled false" }}
{{- end }}
{{- if and $values.services.gateway.enabled (not $values.services.sts.enabled) (not $values.services.sts.internalUrl) }}
{{- $all = append $all "services.sts is disabled, and the Gateway needs one: give services.sts.internalUrl" }}
{{- end }}
{{- if and $published (hasPrefix "http://" (include "caracal.url" (dict "root" . "name" "sts"))) (contains "." (include "caracal.url" (dict "root" . "name" "sts"))) }}
{{- $all = append $all "services.sts.internalUrl must be https, or name a host without a dot: the Gateway sends mandates there" }}
{{- end }}

{{- range $name := splitList " " (include "caracal.roles" .) }}
{{- $service := get $values.services $name }}
{{- if and $service.enabled $service.hpa.enabled (gt (int $service.hpa.minReplicas) (int $service.hpa.maxReplicas)) }}
{{- $all = append $all (printf "services.%s.hpa: minReplicas %d is above maxReplicas %d" $name (int $service.hpa.minReplicas) (int $service.hpa.maxReplicas)) }}
{{- end }}
{{- if $published }}
{{- $settings := include "caracal.settings" (dict "root" $ "name" $name) | fromJson }}
{{- range $insecure := list "JTI_FAIL_OPEN" "INSECURE_STS" "INSECURE_HTTP" }}
{{- if has (get $settings $insecure | toString | lower) (list "1" "t" "true" "yes" "on") }}
{{- $all = append $all (printf "services.%s: %s is allowed only with global.mode dev" $name $insecure) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- range $pair := list (list "STS_MINT_RATE_LIMIT_PER_MIN" "api" "sts") (list "AUDIT_RETENTION_DAYS" "api" "audit") (list "CARACAL_SECRET_BACKEND" "api" "sts") }}
{{- $name := index $pair 0 }}
{{- $one := get (include "caracal.settings" (dict "root" $ "name" (index $pair 1)) | fromJson) $name }}
{{- $other := get (include "caracal.settings" (dict "root" $ "name" (index $pair 2)) | fromJson) $name }}
{{- if ne $one $other }}
{{- $all = append $all (printf "%s must be the same for %s and %s: set it in global.settings" $name (index $pair 1) (index $pair 2)) }}
{{- end }}
{{- end }}

{{- $least := add (int $values.scheduling.preStopSleepSeconds) 20 }}
{{- if lt (int $values.scheduling.terminationGracePeriodSeconds) (int $least) }}
{{- $all = append $all (printf "scheduling.terminationGracePeriodSeconds is %d: a service takes preStopSleepSeconds %d and up to 20 to finish what is in flight and hand its evidence over" (int $values.scheduling.terminationGracePeriodSeconds) (int $values.scheduling.preStopSleepSeconds)) }}
{{- end }}
{{- with include "caracal.budgetMistake" . }}
{{- $all = append $all . }}
{{- end }}
{{- join "\n" $all }}
{{- end }}
