# vtnpipe in a container. On CPUs:   docker build -t vtnpipe .
# With CUDA:                          docker build -t vtnpipe --build-arg CUDA=cu126 .
# Another Python, or another base:    --build-arg BASE=python:3.12-slim
# Run it, as yourself:                docker run --rm -u $(id -u) -v $PWD:/work vtnpipe plan videos.csv features
ARG BASE=python:3.11-slim
FROM ${BASE}

# torch's index: cpu (small), or cu126, cu128 ... (with its own CUDA libraries; the host needs a
# driver only, and `docker run --gpus all`).
ARG CUDA=cpu

COPY . /src
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/${CUDA} \
    && pip install --no-cache-dir "/src[hpc]" \
    && rm -rf /src \
    && vtnpipe --version

ENV HOME=/tmp HF_HOME=/work/.cache/huggingface
WORKDIR /work
ENTRYPOINT ["vtnpipe"]
