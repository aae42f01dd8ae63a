{{- define "gkt-gateway.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Prefix of all names. The longest suffix has 13 characters. */}}
{{- define "gkt-gateway.fullname" -}}
{{- $name := include "gkt-gateway.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{ .Values.fullnameOverride | default $full | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* Labels of the pods of a component. Arguments: root, component. */}}
{{- define "gkt-gateway.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "gkt-gateway.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of an object. Arguments: root, component. */}}
{{- define "gkt-gateway.labels" -}}
{{- include "gkt-gateway.labelsWith" (list (index . 0) (index . 1) (dict)) }}
{{- end }}

{{/* Labels of an object with further ones. Values may replace labels of the chart, but not the selector's. Arguments:
     root, component, map of further labels. */}}
{{- define "gkt-gateway.labelsWith" -}}
{{- $root := index . 0 -}}
{{- $chart := dict
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_")
  "app.kubernetes.io/version" ($root.Values.image.tag | default $root.Chart.AppVersion | trunc 63)
  "app.kubernetes.io/managed-by" $root.Release.Service
  "app.kubernetes.io/part-of" "gkt-gateway" -}}
{{- $further := merge (dict) (index . 2 | default dict) ($root.Values.commonLabels | default dict) -}}
{{- merge (include "gkt-gateway.selector" . | fromYaml) $further $chart | toYaml }}
{{- end }}

{{- define "gkt-gateway.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ with .digest }}@{{ . }}{{ end }}
{{- end }}
{{- end }}

{{- define "gkt-gateway.serviceAccountName" -}}
{{- with .Values.serviceAccount -}}
{{ .name | default (.create | ternary (include "gkt-gateway.fullname" $) "default") }}
{{- end }}
{{- end }}

{{- define "gkt-gateway.configMap" -}}
{{ .Values.existingConfigMaps.config | default (printf "%s-config" (include "gkt-gateway.fullname" .)) }}
{{- end }}

{{/* Map of the policies in subfolders: the path of each file, and its key in the ConfigMap. */}}
{{- define "gkt-gateway.policyPaths" -}}
{{- range $path, $content := .Values.policies }}
{{- if and $content (contains "/" $path) }}
{{ $path | quote }}: {{ $path | replace "/" "." | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* The content of config.yaml. By default, admin.hosts has the names of the admin service. */}}
{{- define "gkt-gateway.config" -}}
{{- $service := printf "%s-admin" (include "gkt-gateway.fullname" .) -}}
{{- $inNamespace := printf "%s.%s" $service .Release.Namespace -}}
{{- $names := list $service $inNamespace (printf "%s.svc" $inNamespace) (printf "%s.svc.cluster.local" $inNamespace) -}}
{{- merge (deepCopy .Values.config) (dict "admin" (dict "hosts" $names)) | toYaml }}
{{- end }}

{{/* A file of a ConfigMap. Arguments: its key, and its content as a map or a text. */}}
{{- define "gkt-gateway.file" -}}
{{- $content := index . 1 -}}
{{ index . 0 | quote }}: |
  {{- kindIs "string" $content | ternary $content (toYaml $content) | nindent 2 }}
{{- end }}

{{/* Fields of a pod that both deployments have. Arguments: root, component, values of the component. */}}
{{- define "gkt-gateway.pod" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
serviceAccountName: {{ include "gkt-gateway.serviceAccountName" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- $selector := dict "labelSelector" (dict "matchLabels" (include "gkt-gateway.selector" $ | fromYaml)) }}
  {{- range . }}
  - {{- hasKey . "labelSelector" | ternary . (merge (deepCopy .) $selector) | toYaml | nindent 4 }}
  {{- end }}
{{- end }}
{{- with $values.initContainers }}
initContainers: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Metadata of a pod. Arguments: root, component, values of the component. */}}
{{- define "gkt-gateway.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
labels:
  {{- $further := merge (dict) ($values.podLabels | default dict) ($root.Values.commonLabels | default dict) }}
  {{- merge (include "gkt-gateway.selector" . | fromYaml) $further | toYaml | nindent 2 }}
{{- $checksum := not $root.Values.existingConfigMaps.config }}
{{- if or $checksum $values.podAnnotations }}
annotations:
  {{- if $checksum }}
  checksum/config: {{ include "gkt-gateway.restartingConfig" . | sha256sum }}
  {{- end }}
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The part of config.yaml whose change restarts a component. Arguments: root, component. */}}
{{- define "gkt-gateway.restartingConfig" -}}
{{- $root := index . 0 -}}
{{- $config := $root.Values.config -}}
{{- if eq (index . 1) "usage-worker" -}}
{{- pick $config "redis" "usage" "data" | toYaml -}}
{{- omit ($config.log | default dict) "requests" | toYaml -}}
{{- else if $root.Values.restartOnConfigChange -}}
{{- toYaml $config -}}
{{- /* Else running gateways apply the edit: docs/operations.md#edit-configyaml */ -}}
{{- end -}}
{{- end }}

{{/* Volumes that both deployments have. Arguments: root, names of the secrets. */}}
{{- define "gkt-gateway.volumes" -}}
{{- $root := index . 0 -}}
- name: config
  configMap: {name: {{ include "gkt-gateway.configMap" $root }}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
- name: secrets
  projected:
    defaultMode: 288   # 0440
    sources:
      {{- range $name := index . 1 }}
      {{- with get $root.Values.secrets $name }}
      - secret: {name: {{ .secret }}, items: [{key: {{ .key | quote }}, path: {{ $name | quote }}}]}
      {{- end }}
      {{- end }}
{{- end }}

{{/* Mounts of these volumes. */}}
{{- define "gkt-gateway.mounts" -}}
- {name: config, mountPath: /etc/gkt, readOnly: true}   # a folder, so that edits reach it
- {name: secrets, mountPath: /run/secrets, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{/* A file of the folder `files`, which has symbolic links to deploy/. Arguments: root, path. */}}
{{- define "gkt-gateway.linked" -}}
{{- (index . 0).Files.Get (index . 1) | required (printf "%s is missing: this copy of the chart lacks its symbolic links. Use the result of helm package" (index . 1)) }}
{{- end }}
