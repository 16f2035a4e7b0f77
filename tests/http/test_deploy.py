"""What config/ ships is true: the reference of settings, and the examples for each platform."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
import yaml
from botocore.stub import ANY, Stubber
from daemon import BINARY, ROOT
from test_lifecycle import run

CONFIG = ROOT / "config/mlad.conf"
DEPLOY = ROOT / "config/deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())


def settings() -> set[str]:
    return set(re.findall(r"^  --([a-z-]+)", run("--help").stdout, re.MULTILINE))


def test_the_reference_is_what_help_says() -> None:
    command = [sys.executable, str(ROOT / "scripts/mlad_conf.py"), str(BINARY)]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert CONFIG.read_text() == made, "run scripts/mlad_conf.py >config/mlad.conf"


def test_every_line_of_the_reference_is_a_setting_at_its_default(tmp_path: Path) -> None:
    lines = re.findall(r"^#([a-z-]+ =.*)$", CONFIG.read_text(), re.MULTILINE)
    assert len(lines) > 30
    file = tmp_path / "all.conf"
    file.write_text("\n".join(lines) + "\n")
    done = run("--help", "--config", str(file))
    assert (done.returncode, done.stdout) == (0, run("--help").stdout)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_an_example_parses_and_names_settings_that_there_are(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".json":
        json.loads(text)
    elif path.suffix in (".yaml", ".yml"):
        assert all(isinstance(part, dict) for part in yaml.safe_load_all(text))
    elif path.suffix == ".sh":
        subprocess.run(["bash", "-n", path], check=True)
        assert os.access(path, os.X_OK)
    known = settings()
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+-[a-z-]+)", text)) & {
        name for name in re.findall(r"--([a-z-]+)", text)
    }
    foreign = {"endpoint-name", "cli-input-json", "strip-components"}
    assert named - foreign <= known
    variables = set(re.findall(r"\bMLAD_([A-Z_]+)\b", text)) - {"FLAG", "TARBALL"}
    assert {name.lower().replace("_", "-") for name in variables} <= known


def test_the_sagemaker_example_asks_for_what_the_api_takes(monkeypatch) -> None:
    """botocore checks every parameter against SageMaker's own model."""
    spec = importlib.util.spec_from_file_location("deploy", DEPLOY / "sagemaker/deploy.py")
    deploy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(deploy)
    client = boto3.client(
        "sagemaker", "us-east-1", aws_access_key_id="none", aws_secret_access_key="none"
    )
    arn = "arn:aws:sagemaker:us-east-1:123456789012:{}/demo"
    with Stubber(client) as stub:
        expected = {"ModelName": "demo", "ExecutionRoleArn": ANY, "PrimaryContainer": ANY}
        stub.add_response("create_model", {"ModelArn": arn.format("model")}, expected)
        answer = {"EndpointConfigArn": arn.format("endpoint-config")}
        expected = {"EndpointConfigName": "demo", "ProductionVariants": ANY}
        stub.add_response("create_endpoint_config", answer, expected)
        stub.add_response("create_endpoint", {"EndpointArn": arn.format("endpoint")})
        monkeypatch.setattr(boto3, "client", lambda _: client)
        role = "arn:aws:iam::123456789012:role/sagemaker"
        argv = ["deploy.py", "demo", "--image", "mlad", "--model", "s3://b/m/", "--role", role]
        monkeypatch.setattr(sys, "argv", [*argv, "--set", "MLAD_MAX_NUM_SEQS=64"])
        deploy.main()
        stub.assert_no_pending_responses()
