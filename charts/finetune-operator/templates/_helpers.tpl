{{/* Names, labels and image references that several templates need. */}}

{{- define "finetune-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "finetune-operator.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "finetune-operator.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Cluster-wide objects have the namespace in their name, so that releases in two namespaces do not conflict. */}}
{{- define "finetune-operator.clusterName" -}}
{{- printf "%s-%s" (include "finetune-operator.fullname" .) .Release.Namespace }}
{{- end }}

{{- define "finetune-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "finetune-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.create is false: give serviceAccount.name, the account that the operator is to use" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "finetune-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "finetune-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: finetune-operator
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "finetune-operator.cleanUpLabels" -}}
{{- toYaml (merge (dict "app.kubernetes.io/component" "clean-up") (include "finetune-operator.labels" . | fromYaml)) }}
{{- end }}

{{/* Takes the hook's weight. Helm prints the log of a failed Job, so its objects can be deleted in any case. */}}
{{- define "finetune-operator.cleanUpHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
{{- end }}

{{/* Takes (dict "image" <values> "name" <path of the values> "root" $). A digest has precedence over a tag. */}}
{{- define "finetune-operator.image" -}}
{{- $repository := required (printf "%s.repository is not set: build the image from its Dockerfile, push it to your registry and give its name here (docs/install.md)" .name) .image.repository }}
{{- if .image.digest }}
{{- printf "%s@%s" $repository .image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (default .root.Chart.AppVersion .image.tag) }}
{{- end }}
{{- end }}

{{- define "finetune-operator.podSecurityContext" -}}
runAsNonRoot: true
{{- if .Values.pods.fixedUser }}
runAsUser: 65532
runAsGroup: 65532
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "finetune-operator.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Rights of the operator to namespaced objects. It has no rule for Secrets: it never reads one. */}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune-operator.io]
  resources: [finetunejobs, adapterdeployments]
  verbs: [get, list, watch]
# spec.ttlSecondsAfterFinished, and the finalizer of spec.output.deletionPolicy
- apiGroups: [finetune-operator.io]
  resources: [finetunejobs]
  verbs: [delete, patch]
- apiGroups: [finetune-operator.io]
  resources: [finetunejobs/status, adapterdeployments/status]
  verbs: [patch]
# OpenShift allows blockOwnerDeletion only to accounts that may update the owner's finalizers.
- apiGroups: [finetune-operator.io]
  resources: [finetunejobs/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [list, create]
{{- if .Values.analysis.jobs.enabled }}
- apiGroups: [batch]
  resources: [cronjobs]
  verbs: [get]
{{- end }}
{{- if .Values.analysis.analysisRuns.enabled }}
- apiGroups: [argoproj.io]
  resources: [analysistemplates]
  verbs: [get]
- apiGroups: [argoproj.io]
  resources: [analysisruns]
  verbs: [get, create, delete]
{{- end }}
{{- if .Values.traffic.inferenceModelRewrites.enabled }}
- apiGroups: [llm-d.ai, inference.networking.x-k8s.io]
  resources: [inferencemodelrewrites]
  verbs: [list, create, patch]
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools]
  verbs: [get]
{{- end }}
{{- end }}

{{/* Rights to the Lease by which replicas, and installations for one namespace, choose the one that works. */}}
{{- define "finetune-operator.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [finetune-operator]
  verbs: [get, update]
{{- end }}
