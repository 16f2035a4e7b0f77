"""Folders that users point --model at: of every family, as released, and such as are no model."""

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon import BINARY, CHAT, COMPLETIONS, DEMO_MODEL, ROOT, TIMEOUT_S, Server, environment

TINY = ROOT / "tests/vectors/tiny"
Start = Callable[..., Server]


def change(path: Path, **members) -> None:
    """Members of a JSON file: those that are given as ... are taken out."""
    old = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (old | members).items() if v is not ...}))


def with_tokenizer(folder: Path, family: str) -> Path:
    """A checkpoint of tests/vectors, which has a tokenizer with more tokens than the model."""
    shutil.copytree(TINY / family, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / name, folder)
    return folder


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    shutil.copytree(DEMO_MODEL, folder)
    (folder / "mlad.conf").unlink()
    return folder


# ---- what is served


@pytest.mark.parametrize("family", sorted(path.name for path in TINY.iterdir()))
def test_every_family_answers_as_transformers_does(family: str, start: Start, tmp_path: Path):
    vectors = json.loads((TINY / family / "expected.json").read_text())
    server = start("--max-num-batched-tokens", "256", model=with_tokenizer(tmp_path / "m", family))
    request = {"prompt": vectors["prompt"], "max_tokens": 64, "temperature": 0, "ignore_eos": True}
    reply = server.complete(**request, return_token_ids=True)
    assert reply["choices"][0]["token_ids"] == vectors["greedy"][:64]


def test_links_as_in_the_cache_of_hugging_face_are_followed(
    start: Start, tmp_path: Path, demo: Path
) -> None:
    snapshot = tmp_path / "models--x--demo/snapshots/0123abcd"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(demo.iterdir())):
        blob = snapshot.parents[1] / "blobs" / str(number)
        blob.parent.mkdir(exist_ok=True)
        file.rename(blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    assert start(model=snapshot).text(prompt="Hello", max_tokens=2, temperature=0)


@pytest.mark.parametrize("value", [..., None, []])
def test_a_config_need_not_name_its_architecture(value, start: Start, demo: Path) -> None:
    change(demo / "config.json", architectures=value)
    assert start(model=demo).text(prompt="Hello", max_tokens=2, temperature=0)


def test_the_defaults_of_generation_config_hold_for_silent_requests(
    start: Start, demo: Path
) -> None:
    change(demo / "generation_config.json", do_sample=True, min_p=1.0, stop_strings=["x"])
    server = start(model=demo)
    asked = {"prompt": "What", "max_tokens": 16, "ignore_eos": True}
    greedy = server.text(**asked, temperature=0)
    assert [server.text(**asked, seed=n) for n in range(4)] == [greedy] * 4
    assert {server.text(**asked, seed=n, min_p=0, temperature=2) for n in range(4)} != {greedy}
    assert '"stop_strings" is ignored' in server.log()


# ---- a tokenizer with more tokens than the model


@pytest.fixture
def narrow(start: Start, tmp_path: Path) -> Server:
    folder = with_tokenizer(tmp_path / "m", "v3_group_yarn")
    change(folder / "tokenizer_config.json", eos_token="<｜User｜>")  # which the model lacks
    return start(model=folder)


def test_tokens_that_only_the_tokenizer_has_are_refused(narrow: Server) -> None:
    assert "the model's vocabulary ends at 127" in narrow.log()
    hi = [{"role": "user", "content": "Hi"}]
    for path, body in ((COMPLETIONS, {"prompt": "Hello world"}), (CHAT, {"messages": hi})):
        reply = narrow.post(path, body)
        assert reply.status == 400
        assert "its vocabulary ends at 127" in reply.error()["message"]
    assert narrow.complete(prompt=[1, 2, 3], max_tokens=2)


def test_they_can_be_neither_ends_nor_bad_words(narrow: Server) -> None:
    reply = narrow.complete(
        prompt=[1, 2, 3], max_tokens=4, min_tokens=4, bad_words=["<｜User｜>", " the", "!"]
    )
    assert reply["usage"]["completion_tokens"] == 4


# ---- what is not


def no_folder(model: Path) -> Path:
    return model / "nothing"


def gguf_file(model: Path) -> Path:
    (model / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    return model / "model.gguf"


def gguf_folder(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-Q4_K_M.gguf")


def pickles(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model-00001-of-00002.bin")


def adapter(model: Path) -> None:
    (model / "config.json").rename(model / "adapter_config.json")
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")


def cache_root(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "snapshots").mkdir()


def missing_shard(model: Path) -> None:
    names = {"lm_head.weight": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def shard_elsewhere(model: Path) -> None:
    names = {"lm_head.weight": "../../etc/passwd"}
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").rename(model / "tokenizer.model")


def lost_link(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("../../blobs/gone")


def cut_short(model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 20)


def changed_header(model: Path, edit: Callable[[bytes], bytes]) -> None:
    path = model / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = edit(data[8 : 8 + size])
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])


def tensor_twice(model: Path) -> None:
    def again(header: bytes) -> bytes:
        entry = json.dumps(json.loads(header)["lm_head.weight"]).encode()
        return header.rstrip().removesuffix(b"}") + b',"lm_head.weight":' + entry + b"}"

    changed_header(model, again)


def strange_name(model: Path) -> None:
    changed_header(model, lambda h: h.replace(b"model.norm.", b"model.n\xffrm."))


def other_config(**members) -> Callable[[Path], None]:
    return lambda model: change(model / "config.json", **members)


def quantized(**members) -> Callable[[Path], None]:
    return other_config(quantization_config=members)


def packed(**weights) -> Callable[[Path], None]:
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"} | weights}
    return quantized(
        quant_method="compressed-tensors", format="pack-quantized", config_groups={"g": group}
    )


def written(name: str, text: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / name).write_text(text)

    return spoil


REFUSED = {
    "no folder": (no_folder, "there is no such folder"),
    "a GGUF file": (gguf_file, "is a GGUF file"),
    "GGUF weights": (gguf_folder, "its weights are GGUF, which is not supported"),
    "pickled weights": (pickles, "its weights are PyTorch pickles"),
    "a LoRA adapter": (adapter, "is a LoRA adapter"),
    "the folder of a cache": (cache_root, 'the folders in its "snapshots"'),
    "a missing shard": (missing_shard, "model-00002-of-00002.safetensors: No such file"),
    "a shard elsewhere": (shard_elsewhere, "must be mapped to a plain file name"),
    "a lost link": (lost_link, "holds neither model.safetensors nor"),
    "a file cut short": (cut_short, "the file is cut short"),
    "a tensor twice": (tensor_twice, "overlaps another"),
    "a name in no encoding": (strange_name, "not valid UTF-8"),
    "no model type": (other_config(model_type=...), '"model_type" is missing'),
    "llama": (other_config(model_type="llama"), 'model type "llama"'),
    "rope by llama3": (other_config(rope_scaling={"rope_type": "llama3"}), "rope_scaling"),
    "another width": (other_config(hidden_size=128), "must have shape (1024, 128)"),
    "more layers": (other_config(num_hidden_layers=5), "model.layers.4."),
    "gptq": (quantized(quant_method="gptq", bits=4), 'is "gptq", which is not supported'),
    "awq": (quantized(quant_method="awq"), 'is "awq"'),
    "bitsandbytes": (quantized(quant_method="bitsandbytes"), 'is "bitsandbytes"'),
    "nvfp4": (quantized(quant_method="modelopt", quant_algo="NVFP4"), 'is "modelopt"'),
    "mxfp4": (quantized(quant_method="mxfp4"), 'is "mxfp4"'),
    "zero points": (packed(symmetric=False), "symmetric"),
    "columns in another order": (packed(actorder="group"), "actorder"),
    "eight bits": (packed(num_bits=8), "num_bits"),
    "a list for a config": (written("config.json", "[]"), "must hold a JSON object"),
    "a list of tokens": (written("tokenizer_config.json", "[]"), "must hold a JSON object"),
    "a list of specials": (written("special_tokens_map.json", "[]"), "must hold a JSON object"),
    "no tokenizer": (no_tokenizer, "holds no tokenizer.json, tiktoken.model or tekken.json"),
    "a broken tokenizer": (written("tokenizer.json", "{"), "tokenizer.json: the JSON text"),
    "no temperature": (written("generation_config.json", '{"temperature": "hot"}'), '"hot"'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_served_is_refused_in_a_sentence(case: str, demo: Path) -> None:
    spoil, words = REFUSED[case]
    model = spoil(demo) or demo
    done = subprocess.run(
        [BINARY, "serve", "--port", "0", "--model", model],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 1
    errors = [line.partition(" error ")[2] for line in done.stderr.splitlines()]
    why, cannot = (line.strip() for line in errors if line)
    assert words in why
    assert cannot == f"can't serve {model}"
