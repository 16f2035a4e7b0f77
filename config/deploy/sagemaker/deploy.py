"""Puts a model on a SageMaker endpoint that mlad serves. Needs boto3 and AWS credentials.

    deploy.py NAME --image ACCOUNT.dkr.ecr.REGION.amazonaws.com/mlad:latest \
        --model s3://BUCKET/models/DeepSeek-V2-Lite/ --role arn:aws:iam::ACCOUNT:role/ROLE

The image is that of `docker build --target sagemaker`, which runs as root, as SageMaker wants it.
Settings of mlad go in as environment (--set MLAD_MAX_NUM_SEQS=64, at most 16), or in a file
mlad.conf beside config.json in the model's folder.
"""

import argparse

import boto3

# Driver 580: what CUDA 13 needs. The default images of the instance families have older ones.
AMI = "al2023-ami-sagemaker-inference-gpu-4-1"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--image", required=True)
    parser.add_argument("--model", required=True, help="S3 prefix of the checkpoint folder")
    parser.add_argument("--role", required=True)
    parser.add_argument("--instance", default="ml.p5.4xlarge")
    parser.add_argument("--set", action="append", default=[], metavar="MLAD_FLAG=VALUE")
    args = parser.parse_args()

    sagemaker = boto3.client("sagemaker")
    source = {
        "S3Uri": args.model,
        "S3DataType": "S3Prefix",
        "CompressionType": "None",  # nothing to unpack: the files are read as they are
    }
    sagemaker.create_model(
        ModelName=args.name,
        ExecutionRoleArn=args.role,
        PrimaryContainer={
            "Image": args.image,
            "ModelDataSource": {"S3DataSource": source},
            "Environment": dict(setting.split("=", 1) for setting in args.set),
        },
    )
    sagemaker.create_endpoint_config(
        EndpointConfigName=args.name,
        ProductionVariants=[
            {
                "VariantName": "all",
                "ModelName": args.name,
                "InstanceType": args.instance,
                "InitialInstanceCount": 1,
                "InferenceAmiVersion": AMI,
                "ModelDataDownloadTimeoutInSeconds": 3600,
                "ContainerStartupHealthCheckTimeoutInSeconds": 900,
                # Requests of one conversation may stay on one instance: see --max-sessions.
                "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
            }
        ],
    )
    sagemaker.create_endpoint(EndpointName=args.name, EndpointConfigName=args.name)
    print(f"creating {args.name}; wait with: aws sagemaker wait endpoint-in-service "
          f"--endpoint-name {args.name}")


if __name__ == "__main__":
    main()
