# The container image: mlad and the few libraries it needs, on a bare Debian.
#
#   docker build -t mlad . && docker run -p 8080:8080 -v /models/X:/opt/ml/model:ro mlad
#
# Without a model at /opt/ml/model it serves the demo model. SageMaker runs it as `IMAGE serve`.

FROM debian:12 AS build
COPY . /src
WORKDIR /src
RUN scripts/dist.sh && mkdir /opt/mlad && tar -xzf build/mlad-*.tar.gz -C /opt/mlad --strip-components=1

FROM debian:12-slim
COPY --from=build /opt/mlad /opt/mlad
ENV MLAD_HOST=0.0.0.0 PATH=/opt/mlad/bin:$PATH
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s CMD ["/opt/mlad/bin/mlad", "healthcheck"]
ENTRYPOINT ["/opt/mlad/bin/mlad"]
CMD ["serve"]
