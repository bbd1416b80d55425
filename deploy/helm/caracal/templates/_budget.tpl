{{/*
Connections to Postgres. Every replica may fill its pool, a rolling Deployment has one replica more, and
the migration holds two. The sum has to fit at the autoscalers' maximum too: that is when the database is
busiest, and a refused connection takes the new replica out, which asks for another.
*/}}

{{/* Connections of one replica: as set, under either name, or the default of the role. */}}
{{- define "caracal.pool" -}}
{{- $settings := include "caracal.settings" . | fromJson }}
{{- $defaults := dict "api" 10 "sts" 8 "gateway" 2 "audit" 4 "coordinator" 10 }}
{{- int (coalesce (get $settings "DB_MAX_CONNS") (get $settings "DB_POOL_MAX") (get $defaults .name)) }}
{{- end }}

{{/* Takes (dict "root" $ "at" "replicas"|"maximum"); answers {"lines": [...], "sum": N} as JSON. */}}
{{- define "caracal.budget" -}}
{{- $lines := list }}
{{- $sum := 0 }}
{{- $root := .root }}
{{- $at := .at }}
{{- range $name := splitList " " (include "caracal.roles" $root) }}
{{- $service := get $root.Values.services $name }}
{{- $it := dict "root" $root "name" $name }}
{{- if $service.enabled }}
{{- $pool := include "caracal.pool" $it | int }}
{{- $replicas := int $service.replicas }}
{{- if $service.hpa.enabled }}
{{- $replicas = int (ternary $service.hpa.maxReplicas $service.hpa.minReplicas (eq $at "maximum")) }}
{{- end }}
{{- $rolling := ternary 0 1 (eq (include "caracal.isStateful" $it) "true") }}
{{- $of := mul (add $replicas $rolling) $pool }}
{{- $lines = append $lines (printf "%s (%d + %d rolling) x %d = %d" $name $replicas $rolling $pool $of) }}
{{- $sum = add $sum $of }}
{{- end }}
{{- end }}
{{- if $root.Values.migrations.enabled }}
{{- $lines = append $lines "migration 2" }}
{{- $sum = add $sum 2 }}
{{- end }}
{{- $others := int $root.Values.secrets.database.otherConnections }}
{{- $lines = append $lines (printf "others %d" $others) }}
{{- dict "lines" $lines "sum" (add $sum $others) | toJson }}
{{- end }}

{{/* What does not fit, as one sentence; nothing when all is well or no maximum is stated. */}}
{{- define "caracal.budgetMistake" -}}
{{- $maximum := int .Values.secrets.database.maxConnections }}
{{- if gt $maximum 0 }}
{{- $fixed := include "caracal.budget" (dict "root" . "at" "replicas") | fromJson }}
{{- $grown := include "caracal.budget" (dict "root" . "at" "maximum") | fromJson }}
{{- if gt (int $fixed.sum) $maximum -}}
secrets.database.maxConnections is {{ $maximum }}, and the replicas alone need {{ int $fixed.sum }}: {{ join ", " $fixed.lines }}. Raise max_connections of Postgres, or lower services.NAME.dbPoolMax or replicas
{{- else if gt (int $grown.sum) $maximum -}}
secrets.database.maxConnections is {{ $maximum }}, and the autoscalers' maximum needs {{ int $grown.sum }}: {{ join ", " $grown.lines }}. Raise max_connections of Postgres, or lower services.NAME.dbPoolMax or services.NAME.hpa.maxReplicas
{{- end }}
{{- end }}
{{- end }}
