"""One pass over a FineTuneJob: gather, plan, apply."""

from finetune_operator.context import Context
from finetune_operator.kube.kinds import Key
from finetune_operator.reconcile.result import Result


async def reconcile(key: Key, context: Context) -> Result:
    """Gather, plan, apply."""
    return Result()
