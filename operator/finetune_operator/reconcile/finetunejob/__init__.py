"""Make one pass over a FineTuneJob: gather, plan, apply.

It knows batch/v1 Jobs and pods, and never a serving group.

``model`` has the values that pass between the steps, ``status`` writes the status with its messages; ``preflight`` and
``attempts`` are the two stages of the plan.
"""

from finetune_operator.context import Context
from finetune_operator.kube.kinds import Key
from finetune_operator.reconcile.finetunejob.apply import apply
from finetune_operator.reconcile.finetunejob.gather import gather
from finetune_operator.reconcile.finetunejob.plan import make_plan
from finetune_operator.reconcile.result import Result


async def reconcile(key: Key, context: Context) -> Result:
    """Make one pass. Raises ``KubeError`` if a call failed that may succeed later."""
    observed = await gather(key, context)
    if observed is None:
        return Result()
    now = context.now()
    plan = make_plan(observed, now, context.settings)
    return await apply(observed, plan, now, context)
