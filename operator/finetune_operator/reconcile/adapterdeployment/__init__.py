"""Make one pass over a serving group: gather, plan, apply.

A serving group is all AdapterDeployments of one inference workload, a Deployment for example.

``model`` has the values that pass between the steps. ``members`` and ``rollout`` are the two stages of the plan: what
each AdapterDeployment asks for, and which pods take it now. ``status`` and ``release`` write the status with its
messages. It knows no batch/v1 Job and no trainer.
"""

from finetune_operator.context import Context
from finetune_operator.kube.kinds import Key
from finetune_operator.reconcile.adapterdeployment.apply import apply
from finetune_operator.reconcile.adapterdeployment.gather import gather
from finetune_operator.reconcile.adapterdeployment.plan import make_plan
from finetune_operator.reconcile.result import Result


async def reconcile(key: Key, context: Context) -> Result:
    """Make one pass. Raises ``KubeError`` if a call failed that may succeed later."""
    observed = await gather(key, context)
    now = context.now()
    plan = make_plan(observed, now, context.settings)
    return await apply(observed, plan, now, context)
