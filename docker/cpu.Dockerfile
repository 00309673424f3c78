# Reading data, metrics, training and inference on a CPU: no CUDA packages. Build from the root:
#     docker build -f docker/cpu.Dockerfile -t bevstack:cpu .
# Run: docker run -v /data/nuscenes:/data bevstack:cpu index /data --version v1.0-mini
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 libusb-1.0-0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/bevstack
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY configs configs
COPY datasets datasets
COPY kernels kernels
COPY perception perception
RUN pip install --no-cache-dir "torch==$(sed -n 's/^torch==//p' constraints.txt)+cpu" \
        --extra-index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir -c constraints.txt '.[train,synthetic,view,runtime]'
ENV MPLBACKEND=Agg
ENTRYPOINT ["bevstack"]
CMD ["doctor"]
