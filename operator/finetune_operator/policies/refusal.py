"""Find what a person can do about a pod that the cluster refuses, from the message of the refusal. Pure."""

REMEDIES: tuple[tuple[str, str], ...] = (
    (
        "must specify",
        "Set the requests and limits that it names in spec.resources; for the preflight's pod, a LimitRange of the "
        "namespace can set defaults.",
    ),
    (
        "exceeded quota",
        "The pod starts when others of the namespace end. Or ask for less in spec.resources, or raise the quota.",
    ),
    ("violates PodSecurity", "Remove what it names from spec.podTemplate, or use a namespace that allows it."),
    ("admission webhook", "Change spec.podTemplate as it says, or ask the administrator of this webhook."),
    ("ValidatingAdmissionPolicy", "Change spec.podTemplate as it says, or ask the administrator of this policy."),
    ("no PriorityClass", "Correct spec.podTemplate.priorityClassName: kubectl get priorityclasses lists those there."),
    ("RuntimeClass", "Correct spec.podTemplate.runtimeClassName: kubectl get runtimeclasses lists those there."),
    ("serviceaccount", "Create this service account in the namespace of the job."),
    ("usage per", "Set spec.resources within the namespace's LimitRange: kubectl describe limitranges shows it."),
)
"""Parts of the API server's messages, and what to do about them; the first that occurs in a message counts."""
OTHERWISE = "Change the spec, or ask the administrator to allow it; the cluster keeps trying to create the pod."


def find_remedy(refusal: str) -> str:
    """Return the sentences that say what to do about a refusal with this message."""
    return next((remedy for part, remedy in REMEDIES if part in refusal), OTHERWISE)
