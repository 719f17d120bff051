# Both images, from one file: `operator` (operator, agent, preflight and command line, without torch) and `trainer`.
#   docker build --target operator --tag registry.example.com/finetune-operator .
#   docker build --target trainer --tag registry.example.com/finetune-trainer .
# The base may be any Debian with Python 3.11 to 3.13 and its venv module. PyTorch brings CUDA's libraries, the node its driver.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# uv, and what uv.lock says for each image: a change of pyproject.toml that changes no dependency installs nothing again.
FROM ${BASE_IMAGE} AS lock
ARG UV_VERSION=0.13.9
RUN python3 -m venv /uv && /uv/bin/pip install --no-cache-dir --disable-pip-version-check --quiet uv==${UV_VERSION}
COPY pyproject.toml uv.lock /lock/
RUN export="/uv/bin/uv export --quiet --project /lock --frozen --no-dev --no-emit-project --no-header --no-annotate" \
 && ${export} --extra operator --extra agent --extra cli --extra data --extra tokenizer \
      --prune torch --prune accelerate --output-file /lock/operator.txt \
 && ${export} --extra trainer --extra tracking --output-file /lock/trainer.txt
# Our own version, for importlib.metadata: the code is copied, not installed.
RUN version="$(/uv/bin/uv version --project /lock --short --frozen)" \
 && mkdir -p "/lock/metadata/finetune_operator-${version}.dist-info" \
 && printf 'Metadata-Version: 2.1\nName: finetune-operator\nVersion: %s\n' "${version}" \
      > "/lock/metadata/finetune_operator-${version}.dist-info/METADATA"

# What both images share: the user, the environment, an empty virtual environment of the image's own Python.
FROM ${BASE_IMAGE} AS base
# Pods run as this user, whose home is the /tmp that they mount; PyTorch and others want a name for it.
RUN groupadd --gid 65532 finetune \
 && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin finetune
RUN --mount=type=bind,from=lock,source=/uv,target=/uv \
    /uv/bin/uv venv --quiet --no-cache --no-managed-python --python "$(command -v python3)" /opt/finetune/venv
ENV PATH=/opt/finetune/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/finetune/code \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp

FROM base AS operator
# All dependencies in one layer, which changes only with them. The list is complete, so that TRL comes without torch. uv's cache would
# only swell the layer; a build that mounts one at /root/.cache/uv sets UV_NO_CACHE to 0.
ARG UV_NO_CACHE=1
COPY --from=lock /lock/operator.txt /opt/finetune/requirements.txt
RUN --mount=type=bind,from=lock,source=/uv,target=/uv \
    HOME=/root /uv/bin/uv pip install --quiet --python /opt/finetune/venv/bin/python --link-mode copy --compile-bytecode \
      --no-deps --require-hashes --requirements /opt/finetune/requirements.txt \
 && printf '#!/opt/finetune/venv/bin/python\nfrom finetune_cli.main import app\n\napp()\n' > /opt/finetune/venv/bin/finetune \
 && chmod 755 /opt/finetune/venv/bin/finetune
# The code last: a change of it moves kilobytes. unchecked-hash makes equal bytecode of equal sources.
COPY --from=lock /lock/metadata /opt/finetune/code
COPY operator /opt/finetune/code
COPY trainer_image /opt/finetune/code
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune/code
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "finetune_operator"]

FROM base AS trainer
# What torch.compile makes kernels with (spec.training.compile): Triton and Inductor compile C and C++ against Python's headers.
RUN apt-get update -qq \
 && headers="$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
 && apt-get install -qq --no-install-recommends gcc g++ libc6-dev $(test -f "${headers}/Python.h" || echo python3-dev) > /dev/null \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# 6 GB: as in `operator`, one layer that changes only with the dependencies.
ARG UV_NO_CACHE=1
COPY --from=lock /lock/trainer.txt /opt/finetune/requirements.txt
RUN --mount=type=bind,from=lock,source=/uv,target=/uv \
    HOME=/root /uv/bin/uv pip install --quiet --python /opt/finetune/venv/bin/python --link-mode copy --compile-bytecode \
      --require-hashes --requirements /opt/finetune/requirements.txt
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=lock /lock/metadata /opt/finetune/code
COPY operator/finetune_api /opt/finetune/code/finetune_api
COPY operator/finetune_artifacts /opt/finetune/code/finetune_artifacts
COPY operator/finetune_engines /opt/finetune/code/finetune_engines
COPY trainer_image/finetune_trainer /opt/finetune/code/finetune_trainer
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune/code
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "finetune_trainer"]
CMD ["train"]
