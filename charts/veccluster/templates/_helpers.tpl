{{/* The name of everything that belongs to the operator. */}}
{{- define "veccluster.name" -}}
{{ printf "%s-operator" (.Release.Name | trunc 54 | trimSuffix "-") }}
{{- end }}

{{/* The name of what has no namespace: two releases in two namespaces do not get in each other's way. */}}
{{- define "veccluster.clusterName" -}}
{{ printf "%s-%s" .Release.Namespace (include "veccluster.name" .) }}
{{- end }}

{{- define "veccluster.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "veccluster.name" .) }}
{{- end }}

{{- define "veccluster.selector" -}}
app.kubernetes.io/name: veccluster-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "veccluster.labels" -}}
{{ include "veccluster.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* An image, of [its values, the chart]. */}}
{{- define "veccluster.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest }}
{{- else -}}
{{ printf "%s:%s" $image.repository ($image.tag | default (index . 1).AppVersion) }}
{{- end -}}
{{- end }}

{{- define "veccluster.subject" -}}
- kind: ServiceAccount
  name: {{ include "veccluster.serviceAccount" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* What the operator may do where there are VecClusters. No Secrets: pods mount them by name, it never reads one. */}}
{{- define "veccluster.rules" -}}
- apiGroups: [veccluster.io]
  resources: [vecclusters, veccollections]
  verbs: [get, list, watch]
- apiGroups: [veccluster.io]
  resources: [vecclusters/status, veccollections/status]
  verbs: [get, patch, update]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [""] # labels only: volumes are deleted by their StatefulSet, if at all
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
