# The command `sslam` and its web page, without ESPnet. From a clone:
#   docker build -t sslam .                                      # CPU
#   docker build -t sslam --build-arg TORCH=gpu .                # NVIDIA, CUDA of torch's wheels
#   docker run --rm -v "$PWD:/data" sslam tag /data/models/sslam /data/recordings -o /data/labels.csv
#   docker run --rm --gpus all ...                               # with the GPU image
FROM python:3.12-slim-bookworm

ARG TORCH=cpu
ARG EXTRAS=av,hf,onnx,plot
RUN pip install --no-cache-dir uv==0.13.9
COPY setup.py pyproject.toml README.md LICENSE /src/
COPY espnet2_sslam /src/espnet2_sslam
# The index's own torch brings CUDA (5 GB); the CPU's comes from PyTorch's index.
RUN if [ "${TORCH}" = cpu ]; then export UV_TORCH_BACKEND=cpu; fi \
    && uv pip install --system --no-cache "/src[${EXTRAS}]" \
    && rm -rf /src
RUN useradd --create-home --uid 1000 sslam
USER 1000
WORKDIR /data
ENTRYPOINT ["sslam"]
CMD ["--help"]
