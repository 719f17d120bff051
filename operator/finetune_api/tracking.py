"""Define ``spec.tracking``: experiment trackers, in addition to the files that every run writes."""

from pydantic import Field

from finetune_api.base import Model, SecretRef


class Mlflow(Model):
    """A run on an MLflow tracking server."""

    uri: str = Field(
        description="URL of the tracking server, for example https://mlflow.example.com.",
        pattern=r"^https?://[^/]+",
    )
    experiment: str | None = Field(
        None,
        description="Experiment of the run. It is created if it does not exist. Unset: <namespace>/<name> of the job.",
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="Secret with MLFLOW_TRACKING_TOKEN, or with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    )


class Wandb(Model):
    """A run on Weights & Biases."""

    project: str = Field(description="Project of the run.", min_length=1, max_length=128)
    entity: str | None = Field(
        None, description="User or team that owns the project. Unset: the default entity of the API key."
    )
    base_url: str | None = Field(
        None,
        description="URL of a self-hosted server. Unset: the public service of Weights & Biases.",
        pattern=r"^https?://",
    )
    secret_ref: SecretRef = Field(description="Secret with WANDB_API_KEY.")


class Tracking(Model):
    """Experiment trackers that receive each logged step. An unreachable tracker never stops the training."""

    mlflow: Mlflow | None = Field(None, description="MLflow.")
    wandb: Wandb | None = Field(None, description="Weights & Biases.")
