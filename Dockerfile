# The container image: mlad and the few libraries it needs, on a bare Debian. It serves on a Hopper
# GPU where the container has one, and on the CPU otherwise.
#
#   docker build -t mlad . && docker run --gpus all -p 8080:8080 -v /models/X:/opt/ml/model:ro mlad
#   docker build -t mlad --target sagemaker .       for SageMaker, which wants root
#
# Without a model at /opt/ml/model it serves the demo model. The driver is the host's: nothing of it
# is in the image.

FROM debian:12 AS build
COPY . /src
WORKDIR /src
RUN scripts/cuda.sh
RUN scripts/dist.sh && mkdir /opt/mlad && tar -xzf build/mlad-*.tar.gz -C /opt/mlad --strip-components=1

FROM debian:12-slim AS sagemaker
COPY --from=build /opt/mlad /opt/mlad
ENV MLAD_HOST=0.0.0.0 PATH=/opt/mlad/bin:$PATH
# What the NVIDIA container runtime gives to a container, where the platform does not say it.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s CMD ["/opt/mlad/bin/mlad", "healthcheck"]
ENTRYPOINT ["/opt/mlad/bin/mlad"]
CMD ["serve"]

FROM sagemaker AS mlad
USER 65534:65534
