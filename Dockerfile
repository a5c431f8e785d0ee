# Two images from one file: `api` has no torch on its disk, `worker` has.
#   docker build --target api    --tag secateur-api .
#   docker build --target worker --tag secateur-worker .

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN groupadd --system --gid 10001 secateur \
 && useradd --system --uid 10001 --gid secateur --home-dir /data --shell /usr/sbin/nologin secateur \
 && install --directory --owner=secateur --group=secateur --mode=0700 /data
WORKDIR /opt/secateur
# What is installed is what docs/locks names, each file with its hash; `pip check` finds what a lock would lack.
ENV LOCKED="--no-deps --no-build-isolation --require-hashes"
COPY docs/locks locks
RUN pip install ${LOCKED} --requirement locks/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY workers workers
COPY migrations migrations
ENV SECATEUR_DATA_DIR=/data
VOLUME /data

FROM base AS api
RUN pip install ${LOCKED} --requirement locks/api.txt \
 && pip install --no-deps --no-build-isolation . \
 && pip check
USER 10001:10001
WORKDIR /data
EXPOSE 8400
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8400/healthz', timeout=2)"]
CMD ["secateur", "api", "--host", "0.0.0.0"]

FROM base AS worker
# The jobs' sandbox; what the container must allow for it stands in docker-compose.yml.
RUN apt-get update && apt-get install --yes --no-install-recommends bubblewrap && rm -rf /var/lib/apt/lists/*
# torch from another index is another file than the lock's: it is held to its version alone.
ARG TORCH_PIP_ARGS=""
RUN pip install ${LOCKED} --requirement locks/worker.txt \
 && if [ -n "${TORCH_PIP_ARGS}" ]; then pip install ${TORCH_PIP_ARGS} torch==2.13.0; \
    else pip install ${LOCKED} --requirement locks/torch.txt; fi \
 && pip install --no-deps --no-build-isolation . \
 && pip check
USER 10001:10001
WORKDIR /data
CMD ["secateur", "worker"]
