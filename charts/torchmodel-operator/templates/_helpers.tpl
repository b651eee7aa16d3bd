{{/* The release's own name for its objects; it always contains the release name. */}}
{{- define "torchmodel-operator.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Labels that select the operator pods. Immutable in a Deployment, so never more than this. */}}
{{- define "torchmodel-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Labels that every object has. */}}
{{- define "torchmodel-operator.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: torchmodel
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.extraLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "torchmodel-operator.labels" -}}
{{ include "torchmodel-operator.selectorLabels" . }}
{{ include "torchmodel-operator.commonLabels" . }}
{{- end }}

{{- define "torchmodel-operator.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "torchmodel-operator.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{/* An image reference from [a map with repository, tag and digest, the root]. */}}
{{- define "torchmodel-operator.image" -}}
{{- $image := index . 0 -}}
{{- $root := index . 1 -}}
{{- $image.repository -}}
{{- if $image.digest -}}
{{- with $image.tag }}:{{ . }}{{ end }}@{{ $image.digest -}}
{{- else -}}
:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Pod Security "restricted", and a read-only root file system. */}}
{{- define "torchmodel-operator.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "torchmodel-operator.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
