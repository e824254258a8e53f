# An agent's worker and its spawner. What it runs are this image's programs: give it a BASE that has what you need.
#
#     docker build -f docker/worker.Dockerfile -t tachikoma-worker .
#
# It runs as root, since the spawner beside the worker is the parent of every command and has to become other users. Of
# all capabilities it needs these, and without them says what it lacks (docker/compose.yaml shows them in use):
#
#     SETUID, SETGID   to become the user of a command
#     SETPCAP          to take capabilities away from commands for good
#     KILL             to end commands of other users
#     SYS_ADMIN        only the entry point, to make the container's own cgroups writable; it gives it up before the
#                      worker starts. Not needed where they are writable already.
#
# Run it with an init (`docker run --init`, `init: true`): what commands leave behind is reaped by process 1. Keep
# /var/lib/tachikoma: the journal there is what keeps a command from starting twice.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# For those whose packages come from an index of their own.
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
# The version, since git is not here: `--build-arg "VERSION=$(tachikoma --version | cut -d' ' -f2)"`.
ARG VERSION=0.0.0
# For the spawner, which is compiled with the wheel; whichever compiler the base has packages of.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev
WORKDIR /build
COPY . .
# Without a compiler the wheel is built without the spawner, so the last line looks for it. The environment is copied to
# the path where it was made, so what its scripts and links name is there again.
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
# Celery then takes no new orders, and commands get TACHIKOMA_STOP_GRACE: give `docker stop` more time than that.
STOPSIGNAL SIGTERM
# Its registration in Redis, which a worker renews as long as it lives and reaches Redis with its own rights.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s CMD ["tachikoma", "worker", "health"]
ENTRYPOINT ["tachikoma-worker-entrypoint"]
CMD ["worker"]
