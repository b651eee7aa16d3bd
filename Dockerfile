# Two images of one distribution: `operator` (no torch in it) and `runtime` (no kopf; the fetcher is `python -m torchmodel_runtime.fetch`).
#   docker build --target operator .        docker build --target runtime .
# Layers go from what changes seldom to what changes often: torch, the other requirements, our code. All Python is compiled to
# bytecode here, because containers run with a read-only root file system (-x: torch has one file in the syntax of Python 3.12).
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS venv
ENV PATH=/opt/torchmodel/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# The user has a name because getpass, which torch calls, fails without one; home is the one folder that is always writable.
RUN echo 'torchmodel:x:65532:65532::/tmp:/usr/sbin/nologin' >>/etc/passwd \
    && echo 'torchmodel:x:65532:' >>/etc/group \
    && python3 -m venv /opt/torchmodel/venv \
    && python -c "import compileall, sysconfig; compileall.compile_dir(sysconfig.get_path('stdlib'), quiet=2, workers=0)"
ENV HOME=/tmp LOGNAME=torchmodel

# What to install, as small files: a change of pyproject.toml or of constraints.txt rebuilds only the layers whose file it changes.
FROM venv AS requirements
WORKDIR /requirements
COPY pyproject.toml constraints.txt ./
RUN python -c 'import pathlib, re, tomllib; \
    project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]; \
    wanted = {"operator": ["operator"], "runtime": ["runtime", "grpc"]}; \
    needs = project["optional-dependencies"]; \
    lists = {f"{image}.txt": sum((needs[extra] for extra in extras), project["dependencies"]) for image, extras in wanted.items()}; \
    pins = pathlib.Path("constraints.txt").read_text().splitlines(); \
    lists["torch.txt"] = [pin for pin in pins if re.match(r"(torch|triton|nvidia-.*|cuda-.*)==", pin)]; \
    [pathlib.Path(name).write_text("\n".join(lines)) for name, lines in lists.items()]'

FROM requirements AS wheel
COPY README.md LICENSE ./
COPY operator operator
COPY runtime runtime
RUN PIP_CONSTRAINT=/requirements/constraints.txt pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM venv AS operator-requirements
COPY --from=requirements /requirements/operator.txt /requirements/constraints.txt /requirements/
RUN pip install --no-cache-dir --no-compile -c /requirements/constraints.txt -r /requirements/operator.txt \
    && python -m compileall -q -j 0 -x py312_ /opt/torchmodel/venv/lib

FROM venv AS runtime-requirements
COPY --from=requirements /requirements/torch.txt /requirements/
RUN pip install --no-cache-dir --no-compile --no-deps -r /requirements/torch.txt \
    && python -m compileall -q -j 0 -x py312_ /opt/torchmodel/venv/lib
COPY --from=requirements /requirements/runtime.txt /requirements/constraints.txt /requirements/
RUN pip install --no-cache-dir --no-compile -c /requirements/constraints.txt -r /requirements/runtime.txt \
    && python -m compileall -q -j 0 -x py312_ /opt/torchmodel/venv/lib

FROM operator-requirements AS operator
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-compile --no-deps /wheel/*.whl && python -m compileall -q -x py312_ /opt/torchmodel/venv/lib
ARG VERSION=dev
ARG SOURCE=""
LABEL org.opencontainers.image.title="torchmodel-operator" \
      org.opencontainers.image.description="Reconciles TorchModel resources into verified, batched, autoscaled HTTP endpoints" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "torchmodel_operator"]

FROM runtime-requirements AS runtime
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-compile --no-deps /wheel/*.whl && python -m compileall -q -x py312_ /opt/torchmodel/venv/lib
# glibc keeps freed tensors instead of giving them back to the kernel after each request (which costs a page fault a page).
# torch loads no plug-in it finds, and no pickle beyond weights; nothing is fetched from a hub by its name.
ENV MALLOC_MMAP_THRESHOLD_=4294967296 \
    MALLOC_TRIM_THRESHOLD_=4294967296 \
    TORCH_DEVICE_BACKEND_AUTOLOAD=0 \
    TORCH_FORCE_WEIGHTS_ONLY_LOAD=1 \
    HF_HUB_OFFLINE=1
ARG VERSION=dev
ARG SOURCE=""
LABEL org.opencontainers.image.title="torchmodel-runtime" \
      org.opencontainers.image.description="Serves one PyTorch model over HTTP with verified weights and proven batching" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "torchmodel_runtime"]
