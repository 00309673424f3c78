# Training on a GPU. Build from the repository root:
#     docker build -f docker/train.Dockerfile -t bevstack:train .
# Run: docker run --gpus all --shm-size 16g -v /data/nuscenes:/data -v $PWD/runs:/runs bevstack:train \
#     train --config configs/nuscenes/fusion.yaml --data.root /data --run_folder /runs/fusion
FROM python:3.11-slim
# libusb: open3d; a C compiler: Triton builds a small launcher for each kernel at first use.
RUN apt-get update && apt-get install -y --no-install-recommends libusb-1.0-0 libgomp1 gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/bevstack
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY configs configs
COPY datasets datasets
COPY kernels kernels
COPY perception perception
RUN pip install --no-cache-dir -c constraints.txt '.[all]'
ENV MPLBACKEND=Agg
ENTRYPOINT ["bevstack"]
CMD ["doctor"]
