{{- define "felix.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains "felix" .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-felix" .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "felix.selector" -}}
app.kubernetes.io/name: felix
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "felix.labels" -}}
{{ include "felix.selector" . }}
app.kubernetes.io/component: broker
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The broker's configuration file: the chart's own keys, and config. */}}
{{- define "felix.config" -}}
{{- $own := dict
  "quic_bind" "0.0.0.0:5000"
  "metrics_bind" (printf "0.0.0.0:%d" (int .Values.metrics.port))
  "shutdown_drain_timeout_ms" (mul 1000 .Values.shutdown.drainSeconds)
  "catalog" "/etc/felix/catalog/catalog.yml"
  "tls_cert_file" "/etc/felix/tls/tls.crt"
  "tls_key_file" "/etc/felix/tls/tls.key"
}}
{{- if .Values.tls.clientCA }}
{{- $_ := set $own "tls_client_ca_file" "/etc/felix/tls/ca.crt" }}
{{- end }}
{{- if .Values.metrics.tokenSecret }}
{{- $_ := set $own "metrics_token_file" "/etc/felix/metrics/token" }}
{{- end }}
{{- merge $own .Values.config | toYaml }}
{{- end }}
