"""Run the demo (`make demo`): from one YAML to a tuned adapter that answers in vLLM. A later run reuses what exists.

It runs on the dev cluster `demo`. With REGISTRY it runs on the user's own cluster (KUBECONFIG, CONTEXT): our images are
pushed to that registry. BASE_IMAGE and VLLM_IMAGE name other images than the public ones.
"""

import argparse
import os
import sys
import time
from typing import Any

import boto3
import yaml
from botocore.config import Config
from botocore.exceptions import ClientError
from rich.console import Console

from devcluster import cluster, corpus, model, serving, targets
from devcluster.errors import DevClusterError
from devcluster.paths import REPOSITORY
from devcluster.progress import say, step
from devcluster.targets import PACKAGES_AT, ClusterTarget, Images

CLUSTER = "demo"
NAMESPACE = "finetune-demo"
RELEASE = "finetune-operator"
SYSTEM_NAMESPACE = "finetune-system"
EXAMPLES = REPOSITORY / "examples"
JOB_FILE, DEPLOYMENT_FILE = EXAMPLES / "shakespeare.yaml", EXAMPLES / "shakespeare-deployment.yaml"
JOB = ADAPTER = "shakespeare"
MODEL_PREFIX = "smollm2-135m-instruct"
BUCKETS = ("models", "texts", "adapters")
PROMPTS = ("To be, or not to be, that is", "KING HENRY.\n", "My lord, the moon is")

Manifest = dict[str, Any]


def up(
    registry: str | None, context: str | None, engine: str | None = None, base: str | None = None, name: str = CLUSTER
) -> None:
    """Run the demo from the first step to the last. Raises DevClusterError with what went wrong and where to look."""
    started = time.monotonic()
    heading("1. A cluster, and the images in its registry")
    target = targets.own_target(registry, context, engine, base) if registry else targets.dev_target(name)
    say(f"on {target.title}")

    heading("2. The operator, by its chart")
    install_operator(target)

    heading("3. An object store with a model and two texts")
    kubectl_apply(target, [namespace_manifest()])
    apply_example(target, "s3.yaml")
    await_rollout(target, "s3")
    if fill_object_store(target):
        # An adapter of an earlier run went with the old object store. The operator runs by now, and removes the agents.
        target.kubectl("delete", f"--namespace={NAMESPACE}", "--ignore-not-found", "-f", str(DEPLOYMENT_FILE))
        target.kubectl("delete", f"--namespace={NAMESPACE}", "--ignore-not-found", "-f", str(JOB_FILE))

    heading("4. An inference Deployment: vLLM serves the base model")
    apply_example(target, "vllm.yaml")
    await_rollout(target, "vllm")

    heading("5. Fine-tune: kubectl apply -f examples/shakespeare.yaml")
    train(target)

    heading("6. Serve: kubectl apply -f examples/shakespeare-deployment.yaml")
    say(target.kubectl("apply", f"--namespace={NAMESPACE}", "-f", str(DEPLOYMENT_FILE)).strip())
    target.finetune("watch", f"adp/{ADAPTER}", f"--namespace={NAMESPACE}", "--timeout=900")

    heading("The same prompts, answered by the base and by the adapter")
    prompts = [option for prompt in PROMPTS for option in ("--prompt", prompt)]
    target.finetune("compare", ADAPTER, f"--namespace={NAMESPACE}", "--max-tokens=48", *prompts)
    show_result(target, time.monotonic() - started)


def down(registry: str | None, context: str | None, name: str = CLUSTER) -> None:
    """Remove what `up` made: the dev cluster, or in the user's own cluster the two namespaces and the release."""
    if not registry:
        if not cluster.down(name):
            say("there is no dev cluster of the demo")
        return
    target = targets.reach_own_target(context)
    with step("taking the demo out of your cluster"):
        target.kubectl(
            *("delete", "finetunejobs,adapterdeployments", "--all", f"--namespace={NAMESPACE}", "--ignore-not-found")
        )
        target.helm("uninstall", RELEASE, f"--namespace={SYSTEM_NAMESPACE}", "--ignore-not-found", "--wait")
        target.kubectl("delete", "namespace", NAMESPACE, SYSTEM_NAMESPACE, "--ignore-not-found")


def heading(title: str) -> None:
    """Print the heading of a part of the demo."""
    Console(stderr=True, highlight=False).print(f"\n[bold]{title}[/]")


def namespace_manifest() -> Manifest:
    """Return the namespace of the demo's own objects."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


def apply_example(target: ClusterTarget, name: str) -> None:
    """Apply a file of `examples/` with the target's images."""
    documents = [document for document in yaml.safe_load_all((EXAMPLES / name).read_text()) if document]
    for document in documents:
        if document["kind"] == "Deployment":
            set_images(document, target.images)
    kubectl_apply(target, documents)


def set_images(deployment: Manifest, images: Images) -> None:
    """Replace the names of images in an example, and mount vLLM's packages where vLLM has no image of its own."""
    pod = deployment["spec"]["template"]["spec"]
    replacements = {"fetch-model": images.operator, "versitygw": images.s3, "vllm": images.engine}
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        container["image"] = replacements.get(container["name"]) or container["image"]
        if container["name"] == "vllm" and images.engine_packages:
            variables = serving.package_variables(PACKAGES_AT)
            container["env"] += [{"name": name, "value": value} for name, value in variables.items()]
            container["volumeMounts"].append({"name": "packages", "mountPath": PACKAGES_AT, "readOnly": True})
            pod["volumes"].append({"name": "packages", "hostPath": {"path": str(images.engine_packages)}})


def kubectl_apply(target: ClusterTarget, documents: list[Manifest]) -> None:
    """Apply manifests in the demo's namespace."""
    arguments = (
        "apply",
        "--filename=-",
        *(() if documents[0]["kind"] == "Namespace" else (f"--namespace={NAMESPACE}",)),
    )
    target.kubectl(*arguments, stdin=yaml.safe_dump_all(documents))


def await_rollout(target: ClusterTarget, deployment: str, seconds: int = 600) -> None:
    """Wait until a Deployment's pods are ready. Raises DevClusterError with the pods and their last events."""
    with step(f"waiting for Deployment {deployment}"):
        try:
            target.kubectl(
                *("rollout", "status", f"deployment/{deployment}", f"--namespace={NAMESPACE}", f"--timeout={seconds}s")
            )
        except DevClusterError as error:
            pods = target.kubectl("get", "pods", f"--namespace={NAMESPACE}", "--output=wide")
            events = target.kubectl("get", "events", f"--namespace={NAMESPACE}", "--sort-by=.lastTimestamp")
            last_events = "\n".join(events.splitlines()[-15:])
            raise DevClusterError(f"{error}\n{pods}\n{last_events}") from error


def fill_object_store(target: ClusterTarget) -> bool:
    """Make the buckets and upload what is missing; return whether the object store was new."""
    base, texts = model.smollm2(), corpus.shakespeare()
    files = {("texts", "shakespeare.txt"): texts.train, ("texts", "hamlet.txt"): texts.validation}
    files |= {("models", f"{MODEL_PREFIX}/{file.name}"): file for file in sorted(base.iterdir())}
    secret = next(yaml.safe_load_all((EXAMPLES / "s3.yaml").read_text()))["stringData"]
    with step("uploading model and texts to S3", "0.3 GB"), target.forwarded(NAMESPACE, "s3", 9000) as address:
        s3 = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id=secret["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=secret["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"max_attempts": 5, "mode": "standard"}),
        )
        present = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
        for bucket in BUCKETS:
            if bucket not in present:
                s3.create_bucket(Bucket=bucket)
        for (bucket, key), file in files.items():
            # The cache's directory is named after the hash of its content.
            version = file.parent.name
            if uploaded_version(s3, bucket, key) != version:
                s3.upload_file(str(file), bucket, key, ExtraArgs={"Metadata": {"version": version}})
    return not present


def uploaded_version(s3: Any, bucket: str, key: str) -> str | None:
    """Return the version with which an object was uploaded, or None if there is no such object."""
    try:
        version = s3.head_object(Bucket=bucket, Key=key)["Metadata"].get("version")
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    return str(version)


def install_operator(target: ClusterTarget) -> None:
    """Install or upgrade our chart with the target's images."""
    values = [*image_values("image", target.images.operator), *image_values("trainerImage", target.images.trainer)]
    with step("helm upgrade --install finetune-operator"):
        target.helm(
            *("upgrade", "--install", RELEASE, str(REPOSITORY / "charts" / "finetune-operator")),
            *(f"--namespace={SYSTEM_NAMESPACE}", "--create-namespace", "--wait", "--timeout=10m"),
            *(f"--set-string={value}" for value in values),
            "--set=crds.keep=false",  # `down` leaves nothing behind
            f"--set=trainer.simulatedGpus={str(target.simulated_gpus).lower()}",
        )


def image_values(name: str, reference: str) -> list[str]:
    """Return the chart's values for an image reference by digest or by tag."""
    repository, at, digest = reference.partition("@")
    if at:
        return [f"{name}.repository={repository}", f"{name}.digest={digest}"]
    repository, _, tag = reference.rpartition(":")
    return [f"{name}.repository={repository}", f"{name}.tag={tag}"]


def train(target: ClusterTarget) -> None:
    """Apply the FineTuneJob and follow it. A failed job of an earlier run is replaced, a finished one is used."""
    before = target.get("finetunejob", JOB, f"--namespace={NAMESPACE}")
    if before and any(
        condition["type"] == "Stalled" and condition["status"] == "True"
        for condition in before.get("status", {}).get("conditions", [])
    ):
        say(f"the FineTuneJob {JOB} of an earlier run has failed: it is deleted and created again")
        target.kubectl("delete", f"--namespace={NAMESPACE}", "-f", str(JOB_FILE))
    say(target.kubectl("apply", f"--namespace={NAMESPACE}", "-f", str(JOB_FILE)).strip())
    target.finetune("watch", f"ftj/{JOB}", f"--namespace={NAMESPACE}", "--timeout=1800")


def show_result(target: ClusterTarget, seconds: float) -> None:
    """Print the held-out loss before and after, the duration of all steps, and commands to look further."""
    job = target.get("finetunejob", JOB, f"--namespace={NAMESPACE}") or {}
    evaluation = job.get("status", {}).get("evaluation") or {}
    console = Console(highlight=False)
    if evaluation:
        console.print(
            "Held-out loss on Hamlet, in nats per token: "
            f"base {evaluation['baseLoss']:.3f}, adapter {evaluation['loss']:.3f} "
            f"({evaluation['improvementPercent']:.1f} % better)."
        )
    console.print(f"All of it took {seconds / 60:.1f} min.\n")
    console.print("[bold]Look further[/]")
    for line in (
        *target.hint().splitlines(),
        f"kubectl get ftj,adp -n {NAMESPACE}",
        f"kubectl describe ftj {JOB} -n {NAMESPACE}",
        f"finetune status {ADAPTER} -n {NAMESPACE}",
        f"finetune logs {JOB} -n {NAMESPACE}",
        f"finetune compare {ADAPTER} -n {NAMESPACE} --prompt 'Good morrow,'",
        "make demo-down",
    ):
        console.print(f"  {line}", markup=False, soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run `up` or `down` and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m devcluster.demo", description=__doc__)
    parser.add_argument("command", choices=["up", "down"])
    parser.add_argument("--name", default=CLUSTER, help="which dev cluster (default: %(default)s)")
    options = parser.parse_args(arguments)
    registry, context = os.environ.get("REGISTRY"), os.environ.get("CONTEXT")
    if context and not registry:
        say(
            "error: CONTEXT is set and REGISTRY is not: "
            "set REGISTRY to the registry that your cluster pulls images from"
        )
        return 2
    try:
        if options.command == "up":
            up(registry, context, os.environ.get("VLLM_IMAGE"), os.environ.get("BASE_IMAGE"), options.name)
        else:
            down(registry, context, options.name)
    except DevClusterError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; `make demo` continues, `make demo-down` removes everything")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
