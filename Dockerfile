# docker build --tag=finetune .
# docker run --gpus=all --shm-size=2g --volume="$PWD:/work" finetune train small --dataset=my.txt --out_dir=out-mine
FROM python:3.12-slim

# torch.compile needs a C compiler; its version is that of the image
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/finetune
COPY setup.py setup.cfg pyproject.toml MANIFEST.in README.md LICENSE ./
COPY recipes recipes
COPY finetune finetune
# the versions are those of setup.cfg
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[lora,metrics,documents]'

# with --user=1000:1000 there is no home and no name; models are kept beside the data
ENV HOME=/tmp USER=finetune HF_HOME=/work/.huggingface
WORKDIR /work
ENTRYPOINT ["finetune"]
CMD ["--help"]
