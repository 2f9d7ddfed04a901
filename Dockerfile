# docker build -t higgs .
# docker run --rm higgs                                           make repro
# docker run --rm --gpus all higgs test                           make test, on a GPU
# docker run --rm -v "$PWD/reports:/home/higgs/laboratory/reports" higgs
#
# Behind a mirror, hand pip's settings to the build; they do not stay in the image:
#     docker build --secret id=pip,src="$HOME/.config/pip/pip.conf" -t higgs .
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

# Ubuntu keeps no older versions of its packages, so to pin one is to break the build at its next fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates g++ gcc git libsndfile1 make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# With the id of the person outside, a mounted folder stays writable: --build-arg UID="$(id -u)".
# The base image's own user has the usual first id, which is wanted here.
ARG UID=1000
RUN if id --user ubuntu >/dev/null 2>&1; then userdel --remove ubuntu; fi \
    && useradd --create-home --no-log-init --uid "$UID" higgs \
    && install --directory --owner=higgs /home/higgs/.cache /home/higgs/laboratory /home/higgs/laboratory/higgs
USER $UID
WORKDIR /home/higgs/laboratory

# The environment hangs on these files alone: a change of the code does not install it again.
COPY --chown=$UID Makefile pyproject.toml constraints.txt requirements-judges.txt LICENSE NOTICE ./
COPY --chown=$UID higgs/__init__.py higgs/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,mode=0444 \
    PIP_NO_CACHE_DIR=1 make setup

COPY --chown=$UID . .
# The files that the environment was made from are copied again, and are newer now.
RUN touch .venv/installed

ENTRYPOINT ["make"]
CMD ["repro"]
