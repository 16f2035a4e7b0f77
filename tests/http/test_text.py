"""Prompts without generation: tokenize, detokenize, render; and SageMaker's small print."""

from daemon import COMPLETIONS, DEMO_MODEL, Server
from tokenizers import Tokenizer

TEXT = "Hello, wörld! 12 €\n"
ORACLE = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
BOS = 0


def test_tokenize_gives_the_ids_of_a_text(server: Server) -> None:
    ids = ORACLE.encode(TEXT, add_special_tokens=False).ids
    answer = server.post("/tokenize", {"prompt": TEXT}).json()
    assert answer == {
        "count": len(ids) + 1,
        "max_model_len": 8192,
        "tokens": [BOS, *ids],
        "token_strs": None,
    }
    plain = server.post("/tokenize", {"prompt": TEXT, "add_special_tokens": False}).json()
    assert plain["tokens"] == ids


def test_tokenize_gives_the_prompt_of_a_chat(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer = server.post("/tokenize", {"messages": messages, "return_token_strs": True}).json()
    expected = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>"
    assert "".join(answer["token_strs"]) == expected
    assert answer["tokens"] == ORACLE.encode(expected, add_special_tokens=False).ids


def test_detokenize_is_the_way_back(server: Server) -> None:
    tokens = server.post("/tokenize", {"prompt": TEXT, "add_special_tokens": False}).json()
    answer = server.post("/detokenize", {"tokens": tokens["tokens"]})
    assert answer.json() == {"prompt": TEXT}
    assert server.post("/detokenize", {"tokens": [99999]}).error()["param"] == "tokens"
    assert server.post("/detokenize", {"tokens": "no"}).error()["param"] == "tokens"


def test_render_gives_what_a_request_would_run_with(server: Server) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 7, "temperature": 0.5}
    rendered = server.post("/v1/chat/completions/render", chat).json()
    assert rendered["token_ids"] == server.post("/tokenize", chat).json()["tokens"]
    assert rendered["sampling_params"]["max_tokens"] == 7
    assert rendered["sampling_params"]["temperature"] == 0.5
    several = server.post("/v1/completions/render", {"prompt": ["One", [1, 2, 3]]}).json()
    assert [len(one["token_ids"]) for one in several] == [len(several[0]["token_ids"]), 3]
    text = server.text(prompt=rendered["token_ids"], max_tokens=5, temperature=0)
    whole = server.post("/v1/chat/completions", chat | {"max_tokens": 5, "temperature": 0}).json()
    assert whole["choices"][0]["message"]["content"] == text


def test_sagemaker_attributes_come_back_and_choose_the_api(server: Server) -> None:
    name = "X-Amzn-SageMaker-Custom-Attributes"
    both = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "One", "max_tokens": 2}
    apis = {"/v1/completions": "text_completion", "/v1/chat/completions": "chat.completion"}
    for route, kind in apis.items():
        value = f"trace=7;route={route}"
        reply = server.post("/invocations", both, {name: value})
        assert reply.headers[name] == value
        assert reply.json()["object"] == kind
    assert server.post("/invocations", both).json()["object"] == "chat.completion"


def test_an_unknown_route_is_refused(server: Server) -> None:
    name = "X-Amzn-SageMaker-Custom-Attributes"
    ask = {"prompt": "One", "max_tokens": 2}
    for route in ("/v1/models", "/v1/completions/render", ""):
        assert server.post("/invocations", ask, {name: f"route={route}"}).status == 400
    assert server.post("/invocations", ask, {name: "myroute=/v1/models"}).status == 200


def test_execution_parameters_for_a_batch_transform(server: Server) -> None:
    answer = server.get("/execution-parameters").json()
    assert answer["BatchStrategy"] == "MULTI_RECORD"
    assert answer["MaxPayloadInMB"] == 6 and answer["MaxConcurrentTransforms"] >= 1


def test_sagemaker_binds_the_port_it_is_given(start) -> None:
    server = start(env={"SAGEMAKER_BIND_TO_PORT": "1"})  # --port wins
    assert server.port != 1
    assert server.post(COMPLETIONS, {"prompt": "One", "max_tokens": 1}).status == 200
