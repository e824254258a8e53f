# An agent's worker and its spawner. Commands are programs of this image: set BASE to an image that has yours.
#
#     docker build -f docker/worker.Dockerfile -t tachikoma-worker .
#
# It runs as root, because the spawner is the parent of every command and has to become other users. It needs the
# following capabilities, and reports those that are missing (docker/compose.yaml sets them):
#
#     SETUID, SETGID   to become the user of a command
#     SETPCAP          to drop capabilities of commands for good
#     KILL             to end commands of other users
#     SYS_ADMIN        to make the container's own cgroups writable. The entry point drops it before the worker
#                      starts. Not needed if the cgroups are writable already.
#
# Run it with an init (`docker run --init`, `init: true`): process 1 must reap the processes that commands leave. Keep
# /var/lib/tachikoma on a volume: the journal there ensures that no command starts twice.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# Set these if your packages come from another index.
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
# The version, because the build has no git: `--build-arg "VERSION=$(tachikoma --version | cut -d' ' -f2)"`.
ARG VERSION=0.0.0
# A compiler for the spawner, which is built with the wheel. Any version will do.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev
WORKDIR /build
COPY . .
# Without a compiler the wheel has no spawner, so the last line checks that it exists. The environment is copied to the
# path where it was created, so the paths in its scripts and links stay valid.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/tachikoma \
 && python3 -m venv /opt/build \
 && /opt/build/bin/python -m pip install --require-hashes -r requirements/build.txt \
 && SETUPTOOLS_SCM_PRETEND_VERSION="$VERSION" \
    /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
 && /opt/tachikoma/bin/python -m pip install --require-hashes -r requirements/worker.txt \
 && /opt/tachikoma/bin/python -m pip install --no-deps /dist/*.whl \
 && /opt/tachikoma/bin/python -m pip uninstall --yes --quiet setuptools pip \
 && test -x /opt/tachikoma/lib/python3.*/site-packages/tachikoma_worker/tachikoma-spawner

FROM ${BASE}
LABEL org.opencontainers.image.title="tachikoma-worker" \
      org.opencontainers.image.description="Tachikoma's agent: runs commands under cgroup limits" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY docker/worker-entrypoint /usr/local/bin/tachikoma-worker-entrypoint
COPY --from=build /opt/tachikoma /opt/tachikoma
ENV PATH=/opt/tachikoma/bin:$PATH \
    TACHIKOMA_DATA=/var/lib/tachikoma
VOLUME /var/lib/tachikoma
# On SIGTERM it takes no new orders, and commands may run for TACHIKOMA_STOP_GRACE: give `docker stop` more time.
STOPSIGNAL SIGTERM
# Checks its registration in Redis, which a worker renews as long as it runs and reaches Redis.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s CMD ["tachikoma", "worker", "health"]
ENTRYPOINT ["tachikoma-worker-entrypoint"]
CMD ["worker"]
