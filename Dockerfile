# One image for the SuperLink, the superexec and the clients: the base dependencies of pyproject.toml, and this package.
#
# On Linux, plain `torch` installs 3 GB of CUDA libraries. For clients without a GPU, name a CPU build and the index that has
# it:
#   docker build --build-arg TORCH=torch==2.13.0+cpu --build-arg PIP_EXTRA_INDEX_URL=INDEX --tag fedssl .
#
# After a change of the code, only the small layer with the code is built again.

ARG BASE=python:3.11-slim

FROM ${BASE} AS libraries
# pip reads these variables by itself.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
ARG TORCH=torch
# hadolint ignore=DL3013
RUN pip install "${TORCH}"
WORKDIR /build
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > wanted \
    && pip install --requirement wanted

FROM libraries AS package
COPY README.md LICENSE ./
COPY fedssl fedssl
COPY clients clients
COPY strategies strategies
RUN pip install --no-deps --prefix /opt/package .

FROM libraries AS lean
# At run time, nothing is compiled, tested or installed, so headers, test suites and installers are removed. torch_shm_manager
# stays, because torch looks for it at every import.
RUN site=$(python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
    && pip check \
    && pip uninstall --yes pip \
    && rm /opt/venv/bin/uv /opt/venv/bin/uvx \
    && rm -rf "$site/torch/include" "$site/torch/share" "$site/torch/test" \
    && find "$site/torch/bin" -type f ! -name torch_shm_manager -delete \
    && find "$site/networkx" "$site/numpy" "$site/scipy" "$site/sympy" -type d -name tests -prune -exec rm -rf {} +

FROM ${BASE}
LABEL org.opencontainers.image.title="fedssl" \
      org.opencontainers.image.description="Federated semi-supervised learning: SuperLink, superexec and clients" \
      org.opencontainers.image.licenses="Apache-2.0"
ARG UID=10001
RUN groupadd --gid "${UID}" fedssl \
    && useradd --uid "${UID}" --gid "${UID}" --no-log-init --create-home --home-dir /home/fedssl --shell /usr/sbin/nologin fedssl \
    && install --directory --owner "${UID}" --group "${UID}" /state
COPY --from=lean /opt/venv /opt/venv
COPY --from=package /opt/package /opt/venv
# Flower sends no telemetry and installs nothing. Files are written only to /state, which should be a volume, and to /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    FLWR_HOME=/tmp/flwr \
    FEDSSL_CACHE=/tmp/fedssl
WORKDIR /state
USER ${UID}:${UID}
CMD ["flower-supernode", "--help"]
