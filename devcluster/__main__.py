"""Run the command line: python -m devcluster up|down|status|kubeconfig|load-image."""

import argparse
import json
import os
import sys

from devcluster import cluster, images
from devcluster.errors import DevClusterError
from devcluster.progress import say
from devcluster.settings import MODES


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 1 after an error, which is on standard error."""
    options = _parser().parse_args(arguments)
    if options.state_dir:
        os.environ["FINETUNE_DEVCLUSTER_STATE"] = options.state_dir
    try:
        return _run(options)
    except DevClusterError as error:
        say(f"error: {error}")
        return 1


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "up":
            dev_cluster = cluster.up(options.name, options.mode, gpus=options.gpus, nodes=options.nodes)
            say(f"cluster {dev_cluster.name!r} is up; use it by: export KUBECONFIG={dev_cluster.kubeconfig}")
        case "down":
            if not cluster.down(options.name):
                say(f"there is no cluster {options.name!r}")
        case "kubeconfig":
            sys.stdout.write(f"{cluster.get(options.name).kubeconfig}\n")
        case "status":
            return _status(options)
        case "load-image":
            registry = cluster.get(options.name).registry
            if registry is None:
                raise DevClusterError(
                    f"cluster {options.name!r} has no real node to run images on: it needs --mode node"
                )
            for image in options.images:
                sys.stdout.write(f"{images.push(image, registry)}\n")
    return 0


def _status(options: argparse.Namespace) -> int:
    status = cluster.status(options.name)
    if options.output == "json":
        sys.stdout.write(json.dumps(status, indent=2) + "\n")
    else:
        lines = [f"{key:12} {value}" for key, value in status.items() if key != "processes" and value is not None]
        lines += [
            f"{item['name']:26} {'pid ' + str(item['pid']) if item['pid'] else 'not running':12} {item['log']}"
            for item in status["processes"]
        ]
        sys.stdout.write("\n".join(lines) + "\n")
    return 0 if status["ready"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m devcluster", description="A real Kubernetes on this machine, without Docker."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="dev", help="which cluster; several can run side by side (default: dev)")
    common.add_argument(
        "--state-dir", help="where clusters are kept (default: $FINETUNE_DEVCLUSTER_STATE or below ~/.local/state)"
    )

    up = commands.add_parser("up", parents=[common], help="create the cluster, or start its parts that do not run")
    up.add_argument(
        "--mode", choices=MODES, default="control-plane", help="what runs (default: control-plane); node needs root"
    )
    up.add_argument(
        "--gpus", type=_count, default=2, help="simulated GPUs of the node, or of each fake node (default: 2)"
    )
    up.add_argument("--nodes", type=_count, default=10, help="fake nodes in mode kwok (default: 10)")
    commands.add_parser("down", parents=[common], help="end all that belongs to the cluster and delete its data")
    commands.add_parser("kubeconfig", parents=[common], help="print the path of the kubeconfig file")
    status = commands.add_parser("status", parents=[common], help="say what runs; exit status 1 unless all of it does")
    status.add_argument("--output", choices=("text", "json"), default="text")
    load_image = commands.add_parser(
        "load-image", parents=[common], help="push local buildah images to the node's registry; print their references"
    )
    load_image.add_argument("images", nargs="+", metavar="NAME")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of zero or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
