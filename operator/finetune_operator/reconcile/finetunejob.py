"""One pass over a FineTuneJob: gather, plan, apply."""

from finetune_operator.context import Context
from finetune_operator.kube.kinds import Key
from finetune_operator.reconcile.apply import BlockedError, RefusedError, apply, write_status
from finetune_operator.reconcile.finetunejob_plan import blocked, plan, refused
from finetune_operator.reconcile.gather import gather
from finetune_operator.reconcile.result import Result

BLOCKED_SECONDS = 15.0


async def reconcile(key: Key, context: Context) -> Result:
    """Raises ``KubeError`` for what may be better at the next try."""
    observed = await gather(key, context)
    if observed is None:
        return Result()
    now = context.now()
    decided = plan(observed, now, context.settings)
    try:
        return await apply(observed, decided, context)
    except RefusedError as error:
        return await write_status(observed.item, refused(observed, now, f"spec: {error}"), context)
    except BlockedError as error:
        await write_status(observed.item, blocked(observed, now, str(error)), context)
        return Result(requeue_after=BLOCKED_SECONDS)
