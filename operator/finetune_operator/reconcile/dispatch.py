"""Which reconciler makes the passes over which kind of key."""

from finetune_operator.adapter_nudges import SERVING_GROUP
from finetune_operator.kube.kinds import FINETUNE_JOB
from finetune_operator.reconcile import adapterdeployment, finetunejob
from finetune_operator.worker import Reconciler

RECONCILERS: dict[str, Reconciler] = {
    FINETUNE_JOB.name: finetunejob.reconcile,
    SERVING_GROUP: adapterdeployment.reconcile,
}
