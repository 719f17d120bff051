"""Map each kind of key to its reconciler."""

from collections.abc import Awaitable, Callable

from finetune_operator.context import Context
from finetune_operator.kube.kinds import FINETUNE_JOB, SERVING_GROUP, Key
from finetune_operator.reconcile import adapterdeployment, finetunejob
from finetune_operator.reconcile.result import Result

Reconciler = Callable[[Key, Context], Awaitable[Result]]

RECONCILERS: dict[str, Reconciler] = {
    FINETUNE_JOB.name: finetunejob.reconcile,
    SERVING_GROUP: adapterdeployment.reconcile,
}
