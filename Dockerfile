# A server on CPUs: docker build -t ov-recipro . && docker run -p 127.0.0.1:8080:8080 ov-recipro
# For another model: docker run -p 127.0.0.1:8080:8080 -v /path/of/models:/models:ro ov-recipro -m /models/model.onnx
FROM python:3.12-slim AS wheel
WORKDIR /source
RUN pip install --no-cache-dir build
COPY pyproject.toml README.md LICENSE ./
COPY ov_recipro ov_recipro
COPY models models
RUN python -m build --wheel --outdir /dist

FROM python:3.12-slim
RUN --mount=from=wheel,source=/dist,target=/dist set -- /dist/*.whl \
    && pip install --no-cache-dir "$1[serve]" && useradd --create-home --uid 10001 explainer
USER 10001
WORKDIR /home/explainer
EXPOSE 8080
HEALTHCHECK --start-period=30s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=3)"]
ENTRYPOINT ["ov-recipro", "serve", "--host", "0.0.0.0", "--port", "8080"]
