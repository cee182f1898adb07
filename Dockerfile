# dure's server. Models lie in a volume, so that they outlive the container:
#   docker build -t dure .
#   docker run -p 127.0.0.1:8000:8000 -v dure:/models -e DURE_API_KEY=… dure serve --host 0.0.0.0 qwen3:0.6b
FROM python:3.13-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY csrc csrc
COPY src src
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.13-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels /wheels/dure-*.whl && \
    useradd --create-home --uid 1000 dure && install -d -o dure -g dure /models
ENV DURE_HOME=/models
USER 1000
VOLUME /models
EXPOSE 8000
# A model that is loading does not make the server unhealthy: /health answers from the start.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["dure"]
# Beyond this machine it answers only who has a key: set DURE_API_KEY, or name one with --api-key.
CMD ["serve", "--host", "0.0.0.0"]
