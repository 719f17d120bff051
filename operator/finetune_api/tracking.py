"""``spec.tracking``: the services that follow a training, beside ``metrics.jsonl`` and TensorBoard's files, which every run leaves."""

from pydantic import Field

from finetune_api.base import Model, SecretRef


class Mlflow(Model):
    """A run on an MLflow tracking server."""

    uri: str = Field(
        description="Address of the tracking server, for example https://mlflow.example.com.",
        pattern=r"^https?://[^/]+",
    )
    experiment: str | None = Field(
        None, description="Experiment of the run; it is made if it is not there. Unset: <namespace>/<name> of the job."
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with MLFLOW_TRACKING_TOKEN, or with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    )


class Wandb(Model):
    """A run on Weights & Biases."""

    project: str = Field(description="Project of the run.", min_length=1, max_length=128)
    entity: str | None = Field(None, description="User or team that owns the project. Unset: the key's own.")
    base_url: str | None = Field(
        None, description="Address of a server of one's own. Unset: that of Weights & Biases.", pattern=r"^https?://"
    )
    secret_ref: SecretRef = Field(description="Secret with WANDB_API_KEY.")


class Tracking(Model):
    """Services that are told of each logged step. One that is away costs its curves, never the training."""

    mlflow: Mlflow | None = Field(None, description="MLflow.")
    wandb: Wandb | None = Field(None, description="Weights & Biases.")
