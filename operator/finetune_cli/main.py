"""The commands and their options. Nothing heavy is imported before a command runs, so that ``--help`` is instant."""

import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from finetune_cli.errors import CliError

cli = typer.Typer(
    name="finetune",
    help="Fine-tuning jobs and adapters on Kubernetes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace. Default: that of the kubeconfig's context.")
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A FineTuneJob or an AdapterDeployment; ftj/NAME or adp/NAME, where both have it."
    ),
]


def app() -> NoReturn:
    """Entry point: errors in words on standard error, exit status 1 (``run``: that of the reason); 130 after Ctrl-C."""
    try:
        cli()
    except CliError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


@cli.command()
def render(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="YAML file with FineTuneJobs and AdapterDeployments; - is standard input."),
    ],
    output: Annotated[Literal["yaml", "json"], typer.Option(help="Form of the output.")] = "yaml",
) -> None:
    """Check a file, and print it with its defaults.

    Needs no cluster. Each problem is named with the path of its field; the exit status then is 1.
    """
    from finetune_cli.render import render as run

    run(file, output)


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
    """Calculate what a FineTuneJob needs: parameters, GPU memory by part, the GPUs that it fits on, steps, time and cost.

    Needs no cluster, no GPU and no weights, only the model's config.json.
    """
    from finetune_cli.estimate import Question
    from finetune_cli.estimate import estimate as run

    run(file, model_config, Question(rows, tokens, gpu, gpu_price_per_hour), output)


@cli.command()
def status(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="All that is known of what has this name; also ftj/NAME, adp/NAME."),
    ] = None,
    namespace: Namespace = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
    context: Context = None,
    output: Annotated[Literal["text", "json"], typer.Option(help="json: the API objects, for scripts.")] = "text",
) -> None:
    """Show FineTuneJobs and AdapterDeployments and how they are."""
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
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds.", min=0)] = None,
) -> None:
    """Follow one object until it is Ready or has failed.

    Exit status 0 if it is Ready, 1 if it failed, was deleted, or took longer than --timeout.
    """
    from finetune_cli.cluster import connect
    from finetune_cli.watch import watch as run

    run(connect(context, namespace), name, timeout)


@cli.command()
def logs(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A FineTuneJob.")],
    attempt: Annotated[int | None, typer.Option(help="Number of the attempt. Default: the newest.", min=1)] = None,
    preflight: Annotated[bool, typer.Option("--preflight", help="The log of the preflight.")] = False,
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
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="It appears whole, or not at all.")],
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

    Every file of an adapter is checked against its manifest, and that against --digest. As an init container it brings a model to a pod.
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
        list[str] | None, typer.Option("--prompt", "-p", help="What both are asked; may be repeated.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible service, for example http://localhost:8000.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The adapter's served name, with --url.")] = None,
    base: Annotated[
        str | None, typer.Option(help="The base's name. Default: what the service says is the adapter's parent.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 80,
    chat: Annotated[
        bool, typer.Option("--chat/--completion", help="Ask as a chat, or let both continue the text.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    output: Annotated[Literal["text", "json"], typer.Option(help="json: a list of prompt, base and adapter.")] = "text",
) -> None:
    """Ask base and adapter the same, side by side."""
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
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Replace a field, for example spec.training.maxSteps=10; null removes it. May be repeated.",
        ),
    ] = None,
    mounts: Annotated[
        list[str] | None,
        typer.Option(
            "--mount",
            metavar="NAME=DIR",
            help="Directory that stands for the PersistentVolumeClaim or ConfigMap of this name. May be repeated.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, for scripts.")] = False,
) -> None:
    """Train a FineTuneJob on this machine, without a cluster.

    Credentials come from the environment (AWS_*, ~/.aws, HF_TOKEN, `hf auth login`), not from the Secrets that the file names. Ctrl-C
    saves a checkpoint; the same command then goes on from there. The exit status says the reason of a failure, as in a pod: 10 for a
    file that is wrong, 40 for a run that was stopped.
    """
    import os

    from finetune_cli.run import Request
    from finetune_cli.run import run as train

    train(Request(file, output, tuple(changes or ()), tuple(mounts or ()), as_json), os.environ)


@cli.command("clean-up", hidden=True)
def clean_up(
    namespaces: Annotated[list[str] | None, typer.Option("--namespace", "-n", help="Only these. Default: all.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the operator.", min=0)] = 180,
    context: Context = None,
) -> None:
    """Delete every AdapterDeployment, wait until the operator took its agents out, then every FineTuneJob: the chart runs this before an uninstall."""
    from finetune_cli.clean_up import clean_up as run
    from finetune_cli.cluster import connect

    run(connect(context, None), namespaces or [], timeout)


if __name__ == "__main__":
    app()
