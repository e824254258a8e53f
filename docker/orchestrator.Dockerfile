# The orchestrator; other commands of `tachikoma` run from the same image.
#
#     docker build -f docker/orchestrator.Dockerfile -t tachikoma-orchestrator .
#
# Any Debian or Ubuntu with Python 3.11 or newer and its venv module will do.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# Set these if your packages come from another index.
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
# The version, because the build has no git: `--build-arg "VERSION=$(tachikoma --version | cut -d' ' -f2)"`.
ARG VERSION=0.0.0
WORKDIR /build
COPY . .
# The environment is copied to the path where it was created, so the paths in its scripts and links stay valid.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/tachikoma \
 && python3 -m venv /opt/build \
 && /opt/build/bin/python -m pip install --require-hashes -r requirements/build.txt \
 && SETUPTOOLS_SCM_PRETEND_VERSION="$VERSION" \
    /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
 && /opt/tachikoma/bin/python -m pip install --require-hashes -r requirements/orchestrator.txt \
 && /opt/tachikoma/bin/python -m pip install --no-deps /dist/*.whl \
 && /opt/tachikoma/bin/python -m pip uninstall --yes --quiet setuptools pip

FROM ${BASE}
LABEL org.opencontainers.image.title="tachikoma-orchestrator" \
      org.opencontainers.image.description="Tachikoma's orchestrator: policy, admission, ledger, streaming, audit" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --create-home --home-dir /var/lib/tachikoma --shell /usr/sbin/nologin tachikoma
COPY --from=build /opt/tachikoma /opt/tachikoma
# On the loopback address, other containers could not reach it.
ENV PATH=/opt/tachikoma/bin:$PATH \
    TACHIKOMA_LISTEN=0.0.0.0:8534
USER 10001:10001
WORKDIR /var/lib/tachikoma
EXPOSE 8534
STOPSIGNAL SIGTERM
# Asks its own gRPC health service over mTLS: healthy means that it serves calls and reaches Redis.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s CMD ["tachikoma", "orchestrator", "health"]
ENTRYPOINT ["tachikoma"]
CMD ["orchestrator"]
