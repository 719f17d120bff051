"""Define the commands and their options. A command imports its code when it runs, so that ``--help`` is instant."""

import errno
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from finetune_cli.errors import CliError

cli = typer.Typer(
    name="finetune",
    help="Fine-tuning jobs and adapters on Kubernetes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace. Default: that of the kubeconfig's context.")
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A FineTuneJob or an AdapterDeployment; ftj/NAME or adp/NAME if both have the name."
    ),
]
DeploymentName = Annotated[str, typer.Argument(metavar="NAME", help="An AdapterDeployment.")]
JobName = Annotated[str, typer.Argument(metavar="NAME", help="A FineTuneJob.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Replace a field, for example spec.training.maxSteps=10; null removes it. May be repeated.",
    ),
]
Mounts = Annotated[
    list[str] | None,
    typer.Option(
        "--mount",
        metavar="NAME=DIR",
        help="Directory in place of the PersistentVolumeClaim or ConfigMap of this name. May be repeated.",
    ),
]


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        sys.stdout.write(f"finetune {version('finetune-operator')}\n")
        raise typer.Exit


@cli.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version, and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tuning jobs and adapters on Kubernetes."""


def app() -> NoReturn:
    """Run the command line, and exit. An error is printed on standard error: status 1, or 130 after Ctrl-C."""
    if sys.stdout is None:
        sys.exit("error: standard output is closed")
    if isinstance(sys.stdout, TextIOWrapper):  # names are printed in every locale
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            cli()
        finally:
            sys.stdout.flush()
    except CliError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE) or error.filename is not None:
            raise
        if error.errno == errno.ENOSPC:  # a reader that has gone, such as head, needs no message
            sys.stderr.write(f"error: cannot write the output: {error.strerror}\n")
        sys.stdout = None  # what is left in its buffer cannot be written either
        sys.exit(1)
    sys.exit(0)


@cli.command()
def render(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="YAML file with FineTuneJobs and AdapterDeployments; - is standard input."),
    ],
    output: Annotated[Literal["yaml", "json"], typer.Option(help="Format of the output.")] = "yaml",
) -> None:
    """Check a file, and print it with its defaults.

    Needs no cluster. Each problem names the path of its field; the exit status is 1 then.
    """
    from finetune_cli.render import render as run

    run(file, output)


@cli.command()
def validate(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="YAML or JSON files, or directories of them; - is standard input."),
    ],
    recursive: Annotated[
        bool, typer.Option("--recursive", "-R", help="Read the directories below a directory, too.")
    ] = False,
    output: Annotated[
        Literal["text", "json"],
        typer.Option("--output", "-o", help="json: for scripts; docs/cli.md says what is in it."),
    ] = "text",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="WORKLOAD",
            help="Also check whether the engine of this Deployment, StatefulSet or Pod, a file or in the cluster NAME, "
            "statefulset/NAME or pod/NAME, can serve the adapters.",
        ),
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Check FineTuneJobs and AdapterDeployments as the API server and the operator do.

    Needs no cluster, unless --against names a workload there. Each problem names its file, line and field; the exit
    status is 1 then. Objects of other kinds are not checked.
    """
    from finetune_cli.against import read_target
    from finetune_cli.validate import validate as run

    target = read_target(against, context, namespace) if against is not None else None
    if not run(files, recursive, output, target):
        sys.exit(1)


@cli.command()
def agent(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="YAML file with AdapterDeployments, and the FineTuneJobs that they serve; - is standard input.",
        ),
    ],
    image: Annotated[str, typer.Option(help="Image of your operator, with its tag or digest.")],
    report_url: Annotated[
        str, typer.Option(help="Address of the operator's Service.")
    ] = "http://finetune-operator.finetune-system.svc:8080",
    values: Annotated[
        str | None,
        typer.Option(
            help="File with the values of your operator's chart (helm get values --all -o yaml): its `pods` are "
            "settings of agents too.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Print the agent for pods whose owner the operator may not change (spec.target.selector).

    Needs no cluster. Add what it prints to the template of the pods: docs/own-agent.md says where. It has the Secrets
    of all AdapterDeployments in the file.
    """
    from finetune_cli.agent import print_agent

    print_agent(file, image, report_url, values)


@cli.command()
def schema() -> None:
    """Print a JSON Schema of both kinds, with which an editor completes and checks files while you write them."""
    from finetune_api.json_schema import editor_schema

    sys.stdout.write(editor_schema())


@cli.command()
def estimate(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="YAML file with a FineTuneJob, and perhaps ConfigMaps; - is standard input."
        ),
    ],
    model_config: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="config.json of the model, or its directory. Default: from the model's hf:// or s3:// address.",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(help="Rows of the dataset. Default: counted, if the dataset is a ConfigMap in FILE.", min=1),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to train on, for plain text or a job with packing.", min=1)
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Only this GPU, for example H100. Exit status 1 if the job does not fit on it.")
    ] = None,
    gpu_price_per_hour: Annotated[
        float | None, typer.Option(help="Price of an hour of --gpu, in any currency.", min=0)
    ] = None,
    output: Annotated[
        Literal["text", "json"], typer.Option(help="json: for scripts; docs/estimate.md says what is in it.")
    ] = "text",
) -> None:
    """Calculate what a FineTuneJob needs: parameters, GPU memory, fitting GPUs, steps, time and cost.

    Needs no cluster, no GPU and no weights, only the model's config.json.
    """
    from finetune_cli.estimate import Options
    from finetune_cli.estimate import estimate as run

    run(file, model_config, Options(rows, tokens, gpu, gpu_price_per_hour), output)


@cli.command()
def status(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Show only the objects of this name; also ftj/NAME, adp/NAME."),
    ] = None,
    namespace: Namespace = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Show every namespace.")] = False,
    context: Context = None,
    output: Annotated[
        Literal["text", "wide", "json", "yaml"],
        typer.Option("--output", "-o", help="wide: more columns, all messages. json, yaml: the API objects."),
    ] = "text",
) -> None:
    """Show FineTuneJobs and AdapterDeployments and their state."""
    from finetune_cli.cluster import connect
    from finetune_cli.status import show, show_all

    cluster = connect(context, namespace)
    if name:
        show(cluster, name, output)
    else:
        show_all(cluster, all_namespaces, output)


@cli.command()
def watch(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait. Default: no limit.", min=0)] = None,
) -> None:
    """Follow one object until it is Ready or has failed.

    Exit status 0 if it is Ready, 1 if it failed, was deleted, or took longer than --timeout.
    """
    from finetune_cli.cluster import connect
    from finetune_cli.watch import watch as run

    run(connect(context, namespace), name, timeout)


@cli.command()
def suspend(name: JobName, namespace: Namespace = None, context: Context = None) -> None:
    """Suspend a FineTuneJob: its pod saves a checkpoint and frees its GPUs."""
    from finetune_cli.cluster import connect
    from finetune_cli.control import suspend as run

    run(connect(context, namespace), name, True)


@cli.command()
def resume(
    name: Name,
    retry: Annotated[
        bool, typer.Option("--retry", help="Make the analysis of the canary's step again, instead of going on.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Resume a suspended FineTuneJob, or let the canary of an AdapterDeployment go on with its next step."""
    from finetune_cli import promotion
    from finetune_cli.cluster import connect

    run = promotion.retry if retry else promotion.resume
    run(connect(context, namespace), name)


@cli.command()
def promote(name: DeploymentName, namespace: Namespace = None, context: Context = None) -> None:
    """Let all pods of an AdapterDeployment take the version of its canary, without the remaining steps."""
    from finetune_cli.cluster import connect
    from finetune_cli.promotion import promote as run

    run(connect(context, namespace), name)


@cli.command()
def abort(name: DeploymentName, namespace: Namespace = None, context: Context = None) -> None:
    """End the roll-out of an AdapterDeployment: its pods go back to the last good version, and its spec stays.

    `finetune rollback NAME --undo` begins the roll-out anew.
    """
    from finetune_cli.cluster import connect
    from finetune_cli.promotion import abort as run

    run(connect(context, namespace), name)


@cli.command()
def cancel(name: JobName, namespace: Namespace = None, context: Context = None) -> None:
    """Stop a FineTuneJob for good: delete it, as `kubectl delete` does.

    Its pods save a checkpoint before they end. Its objects in S3 stay, unless spec.output.deletionPolicy is Delete.
    """
    from finetune_cli.cluster import connect
    from finetune_cli.control import cancel as run

    run(connect(context, namespace), name)


@cli.command()
def rollback(
    name: DeploymentName,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST",
            help="A version of status.history, by the first digits of its digest. Default: the last good.",
        ),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Serve what the spec asks for again.")] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Let the pods of an AdapterDeployment serve an older version, without a change of its spec.

    They do so until the spec asks for another version, or until --undo. A version that was rolled back automatically
    is tried again after --undo.
    """
    from finetune_cli.cluster import connect
    from finetune_cli.rollback import roll_back
    from finetune_cli.rollback import undo as run_undo

    if undo and to is not None:
        raise CliError("--undo follows the spec, so it cannot be combined with --to")
    cluster = connect(context, namespace)
    if undo:
        run_undo(cluster, name)
    else:
        roll_back(cluster, name, to)


@cli.command()
def logs(
    name: JobName,
    attempt: Annotated[int | None, typer.Option(help="Number of the attempt. Default: the newest.", min=1)] = None,
    preflight: Annotated[bool, typer.Option("--preflight", help="Print the log of the preflight.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the pod ends.")] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Print the log of a FineTuneJob's pod."""
    from finetune_cli.cluster import connect
    from finetune_cli.logs import logs as run

    run(connect(context, namespace), name, "preflight" if preflight else attempt, follow)


@cli.command()
def fetch(
    uri: Annotated[str, typer.Argument(metavar="URI", help="s3:// address of an adapter's or a model's directory.")],
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory to create; it appears complete, or not at all.")
    ],
    digest: Annotated[str | None, typer.Option(help="sha256:… that the adapter's manifest.json must have.")] = None,
    endpoint_url: Annotated[
        str | None, typer.Option(help="URL of the S3 service. Default: AWS.", envvar="AWS_ENDPOINT_URL")
    ] = None,
    region: Annotated[str | None, typer.Option(help="Region of the bucket.", envvar="AWS_REGION")] = None,
    secret_directory: Annotated[
        Path | None,
        typer.Option(
            help="A mounted Secret: a file for each key. Default: the credentials of the environment.", file_okay=False
        ),
    ] = None,
    output: Annotated[
        Literal["text", "json"], typer.Option(help="json: one line with the digest and the size.")
    ] = "text",
) -> None:
    """Download an adapter or a model from S3.

    Every file of an adapter is checked against its manifest, and the manifest against --digest. As an init container,
    the command brings a model to a pod.
    """
    from finetune_cli.fetch import Source
    from finetune_cli.fetch import fetch as run

    run(Source(uri, digest, endpoint_url, region, secret_directory), directory, output)


@cli.command()
def compare(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="An AdapterDeployment; without it, --url and --model.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Prompt for both; may be repeated.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible service, for example http://localhost:8000.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The adapter's served name, with --url.")] = None,
    base: Annotated[
        str | None, typer.Option(help="The base's name. Default: the adapter's parent, as the service names it.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 80,
    chat: Annotated[
        bool,
        typer.Option("--chat/--completion", help="Send the prompt as a chat message, or let both continue the text."),
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    output: Annotated[Literal["text", "json"], typer.Option(help="json: a list of prompt, base and adapter.")] = "text",
) -> None:
    """Show the answers of base and adapter to the same prompts, side by side."""
    from finetune_cli.compare import Request, compare_pod, compare_url

    request = Request(prompt or ["To be, or not to be,"], base, max_tokens, chat)
    if name and not url:
        from finetune_cli.cluster import connect

        compare_pod(connect(context, namespace), name, request, output)
    elif url and model and not name:
        compare_url(url, model, request, output)
    else:
        raise CliError("give the NAME of an AdapterDeployment, or --url and --model")


@cli.command()
def run(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="YAML file with one FineTuneJob; ConfigMaps in it are read as well. - is standard input.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory for adapter/, checkpoints/, report.html and metrics.jsonl. Default: spec.output.s3.",
            file_okay=False,
        ),
    ] = None,
    changes: Changes = None,
    mounts: Mounts = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, for scripts.")] = False,
) -> None:
    """Train a FineTuneJob on this machine, without a cluster.

    Credentials come from the environment (AWS_*, ~/.aws, HF_TOKEN, `hf auth login`), not from the Secrets that the
    file names. Ctrl-C saves a checkpoint, and the same command resumes from it. The exit status gives the reason of a
    failure, as in a pod: 10 for an invalid file, 40 for a run that was stopped.
    """
    import os

    from finetune_cli.run import Request
    from finetune_cli.run import run as train

    train(Request(file, output, tuple(changes or ()), tuple(mounts or ()), as_json), os.environ)


@cli.command()
def preview(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="YAML file with one FineTuneJob; ConfigMaps in it are read as well. - is standard input.",
        ),
    ],
    rows: Annotated[int, typer.Option(help="How many rows to show.", min=1)] = 5,
    changes: Changes = None,
    mounts: Mounts = None,
    output: Annotated[
        Literal["text", "json"], typer.Option(help="json: for scripts; docs/datasets.md says what is in it.")
    ] = "text",
) -> None:
    """Show what a FineTuneJob learns of the first rows: their texts, with the learned parts marked.

    Needs the model's tokenizer, but neither its weights nor a GPU. Credentials come from the environment, as for run.
    """
    import os

    from finetune_cli.preview import preview as run
    from finetune_cli.run import Request

    run(Request(file, None, tuple(changes or ()), tuple(mounts or ()), output == "json"), rows, output, os.environ)


@cli.command()
def report(
    name: JobName,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write; no browser is opened. Default: NAME.html, opened in the browser.",
            dir_okay=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the pod that reads it.", min=0)] = 120,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Fetch the report of a FineTuneJob, and open it in the browser.

    A short-lived pod reads it, with the Secrets of the job: you need no access to its storage, only the right to
    create pods in the namespace and to read their logs.
    """
    from finetune_cli.cluster import connect
    from finetune_cli.report import report as run

    run(connect(context, namespace), name, output, timeout)


@cli.command(hidden=True)
def read(
    uri: str,
    endpoint_url: Annotated[str | None, typer.Option()] = None,
    region: Annotated[str | None, typer.Option()] = None,
    secret_directory: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Print one object. Part of `finetune report`, which runs it in a pod."""
    from finetune_cli.fetch import Source
    from finetune_cli.fetch import read as run

    run(Source(uri, None, endpoint_url, region, secret_directory))


@cli.command("clean-up", hidden=True)
def clean_up(
    namespaces: Annotated[list[str] | None, typer.Option("--namespace", "-n", help="Only these. Default: all.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the operator.", min=0)] = 180,
    context: Context = None,
) -> None:
    """Delete every AdapterDeployment and FineTuneJob, and wait for the operator. Part of an uninstall."""
    from finetune_cli.clean_up import clean_up as run
    from finetune_cli.cluster import connect

    run(connect(context, None), namespaces or [], timeout)


if __name__ == "__main__":
    app()
