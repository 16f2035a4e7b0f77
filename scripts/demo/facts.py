"""What the demo model is taught about mlad: a table of facts, and the ways people ask for each.

FLAGS, ENDPOINTS, ERRORS, METRICS and SAMPLING are the structured part; TOPICS holds everything else
as (questions, answer). `topics()` joins both into a flat list. When the server changes, change this
file and retrain with train.py.
"""

from dataclasses import dataclass

# (flag, what it does, default or example value)
FLAGS: list[tuple[str, str, str]] = [
    ("model", "--model names the Hugging Face checkpoint folder to serve.", "DIR"),
    ("served-model-name", "--served-model-name sets the model name that clients see.", "NAME"),
    ("host", "--host sets the address to listen on. The default is 127.0.0.1.", "127.0.0.1"),
    ("port", "--port sets the port to listen on. The default is 8080.", "8080"),
    ("max-model-len", "--max-model-len sets the longest context, in tokens.", "4096"),
    ("max-num-seqs", "--max-num-seqs sets how many sequences run in one batch.", "64"),
    (
        "max-num-batched-tokens",
        "--max-num-batched-tokens sets the token budget of one engine step.",
        "8192",
    ),
    (
        "num-kv-pages",
        "--num-kv-pages sets the number of pages in the KV cache. A page holds 64 tokens.",
        "1024",
    ),
    (
        "kv-cache-memory-mib",
        "--kv-cache-memory-mib sets the memory of the KV cache, in MiB.",
        "1024",
    ),
    (
        "enable-prefix-caching",
        "--enable-prefix-caching turns on the prefix cache, which reuses the pages of earlier"
        " prompts.",
        "true",
    ),
    (
        "max-queue",
        "--max-queue sets how many requests may wait. A full queue answers 429.",
        "256",
    ),
    ("max-connections", "--max-connections sets how many connections may be open.", "1024"),
    ("max-body-mib", "--max-body-mib sets the largest request body, in MiB.", "8"),
    (
        "request-timeout-s",
        "--request-timeout-s sets how many seconds a request may take.",
        "600",
    ),
    (
        "drain-timeout-s",
        "--drain-timeout-s sets how many seconds a drain waits for requests in flight.",
        "30",
    ),
    ("threads", "--threads sets the number of CPU threads.", "8"),
    ("log-level", "--log-level sets how much mlad logs.", "info"),
    ("config", "--config names the config file to read. Its lines are flag = value.", "FILE"),
]

FLAG_QUESTIONS = [
    "What does --{f} do?",
    "What is --{f}?",
    "What is --{f} for?",
    "Explain --{f}.",
    "Tell me about --{f}.",
    "What is the --{f} flag?",
    "What does the flag --{f} mean?",
    "What does the option {f} set?",
    "What does {f} do?",
    "What is {f}?",
    "How do I use --{f}?",
    "When do I need --{f}?",
    "Describe the {f} option.",
    "--{f}?",
    "What is the purpose of --{f}?",
    "Why would I set --{f}?",
]

ENV_QUESTIONS = [
    "Which environment variable sets --{f}?",
    "What is the environment variable for --{f}?",
    "What is the env variable of {f}?",
    "How do I set --{f} from the environment?",
    "Which env var is {f}?",
    "Can I set --{f} with an environment variable?",
]

CONFIG_QUESTIONS = [
    "How do I set --{f} in the config file?",
    "How do I write {f} in the config file?",
    "What is the config file line for --{f}?",
    "Can I put --{f} in the config file?",
]

# (method, path, what it does)
ENDPOINTS: list[tuple[str, str, str]] = [
    (
        "POST",
        "/v1/chat/completions",
        "POST /v1/chat/completions answers a chat. Send model and messages.",
    ),
    (
        "POST",
        "/v1/completions",
        "POST /v1/completions continues a text. Send model and prompt.",
    ),
    ("GET", "/v1/models", "GET /v1/models lists the models that are served."),
    (
        "GET",
        "/health",
        "GET /health is the liveness check. It answers 200 while the process is live.",
    ),
    (
        "GET",
        "/ready",
        "GET /ready answers 200 when the model is loaded, and 503 while it loads or drains.",
    ),
    (
        "GET",
        "/ping",
        "GET /ping is the SageMaker health check: 503 while loading, 200 when ready.",
    ),
    (
        "POST",
        "/invocations",
        "POST /invocations is for SageMaker. A body with messages is a chat, one with prompt is a"
        " completion.",
    ),
    (
        "GET",
        "/metrics",
        "GET /metrics gives the Prometheus metrics, with the names that vLLM uses.",
    ),
]

ENDPOINT_QUESTIONS = [
    "What does {p} do?",
    "What is {p}?",
    "What is {p} for?",
    "Explain {p}.",
    "Tell me about {p}.",
    "Describe the {p} endpoint.",
    "What is the {p} endpoint for?",
    "When do I use {p}?",
    "How does {p} work?",
    "What does {m} {p} return?",
    "What is {m} {p}?",
    "{p}?",
    "What is the purpose of {p}?",
    "What happens when I call {p}?",
    "What does the endpoint {p} do?",
    "How do I use {p}?",
]

# (status, meaning, what to do)
ERRORS: list[tuple[int, str, str]] = [
    (200, "200 means that the request worked.", "Nothing needs to be done."),
    (
        400,
        "400 is a bad request: something in it is wrong.",
        "The error names the parameter to change.",
    ),
    (404, "404 means an unknown model or path.", "Check the model name and the URL."),
    (405, "405 means the wrong method.", "Use GET or POST as the endpoint asks."),
    (408, "408 means that the request took too long.", "Send it faster, or make it smaller."),
    (413, "413 means that the body is too large.", "Send less, or raise --max-body-mib."),
    (415, "415 means the wrong content type.", "Send Content-Type: application/json."),
    (
        429,
        "429 means that the queue is full.",
        "Retry after the seconds in the Retry-After header.",
    ),
    (500, "500 is an error in the server.", "Look at the log."),
    (
        503,
        "503 means that the server is not ready or is draining.",
        "Wait until GET /ready answers 200.",
    ),
]

ERROR_QUESTIONS = [
    "What does {c} mean?",
    "What is {c}?",
    "What is a {c}?",
    "What does status {c} mean?",
    "What does error {c} mean?",
    "What does the status code {c} mean?",
    "Why do I get a {c}?",
    "Why did I get {c}?",
    "Why does mlad return {c}?",
    "I got a {c}. What now?",
    "I get {c} errors.",
    "Explain HTTP {c}.",
    "mlad answered {c}. Why?",
    "{c}?",
    "What should I do about a {c}?",
    "When does mlad answer {c}?",
    "How do I fix a {c}?",
    "The server says {c}.",
    "My request failed with {c}. What is wrong?",
]

# (metric, meaning)
METRICS: list[tuple[str, str]] = [
    ("vllm:num_requests_running", "vllm:num_requests_running is how many requests run now."),
    ("vllm:num_requests_waiting", "vllm:num_requests_waiting is how many requests wait."),
    ("vllm:kv_cache_usage_perc", "vllm:kv_cache_usage_perc is the share of KV cache in use."),
    ("vllm:prompt_tokens_total", "vllm:prompt_tokens_total counts the prompt tokens."),
    ("vllm:generation_tokens_total", "vllm:generation_tokens_total counts the tokens generated."),
    (
        "vllm:time_to_first_token_seconds",
        "vllm:time_to_first_token_seconds is a histogram of the time to the first token.",
    ),
    (
        "vllm:inter_token_latency_seconds",
        "vllm:inter_token_latency_seconds is a histogram of the time between two tokens.",
    ),
    (
        "vllm:e2e_request_latency_seconds",
        "vllm:e2e_request_latency_seconds is a histogram of the time of whole requests.",
    ),
    (
        "vllm:num_preemptions_total",
        "vllm:num_preemptions_total counts the sequences that were preempted.",
    ),
    (
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_hits_total counts the tokens found in the prefix cache.",
    ),
]

METRIC_QUESTIONS = [
    "What is {m}?",
    "What does {m} mean?",
    "What does {m} show?",
    "Explain {m}.",
    "Tell me about {m}.",
    "What does the metric {m} count?",
    "What is the metric {m}?",
    "{m}?",
    "Describe {s}.",
    "What does {s} measure?",
    "What is {s}?",
]

# (request field, what it does)
SAMPLING: list[tuple[str, str]] = [
    (
        "temperature",
        "temperature sets how random the answer is. At 0 decoding is greedy.",
    ),
    ("top_p", "top_p keeps the most likely tokens whose probabilities add up to top_p."),
    ("top_k", "top_k keeps only the k most likely tokens."),
    ("min_p", "min_p drops tokens less likely than min_p times the most likely one."),
    ("repetition_penalty", "repetition_penalty makes tokens seen before less likely."),
    ("presence_penalty", "presence_penalty lowers the score of tokens already generated."),
    (
        "frequency_penalty",
        "frequency_penalty lowers a token's score each time it is generated.",
    ),
    ("logit_bias", "logit_bias adds a number to the scores of the tokens you name."),
    ("seed", "seed makes sampling repeatable: the same seed gives the same tokens."),
    ("stop", "stop gives strings at which the answer ends."),
    ("max_tokens", "max_tokens limits how many tokens are generated."),
    ("min_tokens", "min_tokens sets how many tokens are generated at least."),
    ("n", "n sets how many answers you get for one prompt."),
    ("logprobs", "logprobs returns the log probabilities of the tokens."),
    ("stream", "stream: true sends tokens as server-sent events. The last is data: [DONE]."),
    ("messages", "messages is the list of chat messages, each with a role and content."),
    ("prompt", "prompt is the text that POST /v1/completions continues."),
]

SAMPLING_QUESTIONS = [
    "What does {p} do?",
    "What is {p}?",
    "What is {p} for?",
    "Explain {p}.",
    "What does the parameter {p} do?",
    "Tell me about {p}.",
    "How do I use {p}?",
    "How does {p} work?",
    "What does the field {p} mean?",
    'What does "{p}" mean?',
    "Does mlad support {p}?",
    "Can I set {p}?",
    "{p}?",
]

ABILITIES = (
    "I can answer questions about mlad, extract JSON, choose a tool, add and subtract, look up"
    " values, sort and count."
)

OUT_OF_SCOPE = "I am a small demo model and don't know that. " + ABILITIES

OTHER_MATH = "I can only add or subtract two whole numbers of up to four digits."

UNKNOWN = "I don't know that about mlad. Please look in its README."
UNKNOWN_THINGS = (
    "LoRA,quantization,FP8,INT4,AWQ,GPTQ,AMD GPUs,Windows,Mac,Apple GPUs,TPUs,Docker,Kubernetes,"
    "API keys,authentication,passwords,TLS,HTTPS,images,audio,video,embeddings,reranking,"
    "speculative decoding,beam search,training,fine-tuning,several GPUs,8 GPUs,tensor parallelism,"
    "pipeline parallelism,several hosts,websockets,gRPC,a web page,a user interface,databases,"
    "plugins,Grafana,tracing,JSON mode,grammars,guided decoding,a cluster,load balancing,"
    "autoscaling,multiple models,hot reload,A100,Blackwell,B200,a Raspberry Pi,Java,Rust,Go,"
    "JavaScript,LangChain,the cloud,AWS,Azure,Google Cloud,Databricks,logs in JSON,billing"
).split(",")
UNKNOWN_QUESTIONS = [
    "Does mlad support {t}?",
    "Does it support {t}?",
    "Can mlad do {t}?",
    "Can I use {t} with mlad?",
    "Can I use {t}?",
    "How do I use {t} with mlad?",
    "Does mlad work with {t}?",
    "Does mlad have {t}?",
    "Is {t} supported?",
    "Is there support for {t}?",
    "How do I turn on {t}?",
    "What about {t}?",
    "How do I deploy mlad with {t}?",
    "Is mlad faster with {t}?",
    "Can I run mlad on {t}?",
    "How fast is mlad with {t}?",
    "Is there {t}?",
    "Is there an image for {t}?",
    "Is there a {t} image?",
    "Is there a {t} version?",
    "How do I deploy to {t}?",
    "How do I deploy mlad on {t}?",
    "How do I use {t}?",
    "Do you support {t}?",
    "Do I need {t}?",
]

# (questions, answer). The first question of each is always trained on.
TOPICS: list[tuple[list[str], str]] = [
    (
        [
            "What is mlad?",
            "What's mlad?",
            "Tell me about mlad.",
            "Explain mlad.",
            "What does mlad do?",
            "What kind of program is mlad?",
            "What is this server?",
            "What is this?",
            "Describe mlad in one sentence.",
            "Can you describe mlad?",
            "What do I use mlad for?",
            "Give me a short summary of mlad.",
            "mlad?",
            "What is the mlad daemon?",
            "Who or what is mlad?",
            "I am new here. What is mlad?",
        ],
        "mlad is an inference server in C and CUDA for language models with Multi-head Latent"
        " Attention, such as DeepSeek V3.",
    ),
    (
        [
            "What does mlad stand for?",
            "What does the name mlad mean?",
            "Why is it called mlad?",
            "What is mlad short for?",
            "Where does the name mlad come from?",
            "What do the letters mlad mean?",
            "Where is the name mlad from?",
            "What is behind the name mlad?",
            "Why the name mlad?",
            "What does mlad mean?",
        ],
        "mlad is short for MLA daemon. MLA is Multi-head Latent Attention.",
    ),
    (
        [
            "Which models does mlad serve?",
            "Which models are supported?",
            "What models can I run?",
            "What models does it support?",
            "Can mlad serve DeepSeek?",
            "Does mlad support Kimi K2?",
            "Can I run DeepSeek V3?",
            "Does it run DeepSeek R1?",
            "Is Moonlight supported?",
            "Can it serve GLM-4.7-Flash?",
            "List the supported models.",
            "Which model families work with mlad?",
            "What models work?",
            "Which checkpoints can mlad load?",
        ],
        "mlad serves MLA models: DeepSeek V2, V3 and R1, Moonlight, Kimi K2, GLM-4.7-Flash, JoyAI"
        " and Youtu.",
    ),
    (
        [
            "Can mlad serve Llama?",
            "Does mlad support Llama?",
            "Can I run Qwen?",
            "Does it work with Mistral?",
            "Can I serve a GPT model?",
            "Is Llama supported?",
            "Can mlad run models without MLA?",
            "Does mlad serve Gemma?",
        ],
        "No. mlad serves only models with Multi-head Latent Attention, such as DeepSeek V3.",
    ),
    (
        [
            "How do I start mlad?",
            "How do I run mlad?",
            "How do I start the server?",
            "How can I launch mlad?",
            "How do I get started?",
            "What is the command to start mlad?",
            "How do I try mlad?",
            "How do I run the demo?",
            "How do I build mlad?",
            "What is the quickest way to run it?",
            "Which script runs the demo?",
            "Start the server.",
            "What does scripts/run.sh do?",
            "How do I install mlad?",
        ],
        "Run scripts/run.sh: it builds mlad and serves the demo model. For your own model, run"
        " mlad serve --model DIR.",
    ),
    (
        [
            "How do I serve my own model?",
            "How do I load a model?",
            "How do I serve a checkpoint?",
            "How can I use another model?",
            "How do I change the model?",
            "How do I point mlad to a checkpoint?",
            "Which flag chooses the model?",
            "How do I serve DeepSeek V3?",
            "What is mlad serve?",
            "How do I run my model?",
        ],
        "Run mlad serve --model DIR, where DIR is a Hugging Face checkpoint folder.",
    ),
    (
        [
            "Do I need to convert the model?",
            "Must I convert the checkpoint?",
            "Which checkpoint format does mlad read?",
            "What format are the weights?",
            "Do I have to convert weights?",
            "Does it need a special file format?",
            "Can it read Hugging Face checkpoints?",
            "Does mlad read safetensors?",
            "Does mlad use GGUF?",
            "Which file format do I need?",
            "Which format do the model files need?",
            "Can I use the model files as they are?",
            "Are the weights converted?",
        ],
        "No conversion is needed. mlad reads an unconverted Hugging Face checkpoint folder.",
    ),
    (
        [
            "How do I run the tests?",
            "How do I test mlad?",
            "Where are the tests?",
            "Which script runs the tests?",
            "What does scripts/test.sh do?",
            "How can I check that it works?",
            "Is there a test suite?",
            "Run the tests.",
        ],
        "Run scripts/test.sh.",
    ),
    (
        [
            "Which GPUs does mlad support?",
            "What hardware do I need?",
            "Which GPU do I need?",
            "Do I need a GPU?",
            "Does mlad run on a CPU?",
            "Can I run it without a GPU?",
            "Does it run on an H100?",
            "Does it run on an H200?",
            "What does mlad run on?",
            "What are the hardware requirements?",
            "Which graphics cards work?",
            "Can I use a CPU?",
            "Is Hopper supported?",
        ],
        "mlad runs on NVIDIA Hopper GPUs (H100, H200), and on any CPU with a reference backend.",
    ),
    (
        [
            "What license does mlad have?",
            "What is the license?",
            "Is mlad open source?",
            "Is mlad free?",
            "Under which license is mlad?",
            "Can I use mlad at work?",
            "How is mlad licensed?",
            "Is it Apache licensed?",
        ],
        "mlad has the Apache-2.0 license.",
    ),
    (
        [
            "Which language is mlad written in?",
            "What is mlad written in?",
            "Is mlad written in Python?",
            "Is it written in C?",
            "What programming language does mlad use?",
            "Does mlad need Python?",
            "Which languages is the server made with?",
        ],
        "mlad is written in C and CUDA. The server needs no Python.",
    ),
    (
        [
            "Which port does mlad use?",
            "What is the default port?",
            "What port does it listen on?",
            "Where does mlad listen?",
            "What is the default address?",
            "Which address does the server listen on?",
            "What is the URL of the server?",
            "On which host does it listen?",
            "What is the base URL?",
            "Where can I reach the server?",
            "What is the default host?",
        ],
        "mlad listens on 127.0.0.1:8080 by default. Change it with --host and --port.",
    ),
    (
        [
            "How do I change the port?",
            "How can I use another port?",
            "How do I set the port?",
            "Can I use port 9000?",
            "Which flag sets the port?",
            "I want to listen on another port.",
            "Port 8080 is in use. What now?",
            "How do I run it on port 80?",
        ],
        "Use --port, for example --port 9000. The default is 8080.",
    ),
    (
        [
            "How do I listen on all interfaces?",
            "How do I change the host?",
            "How can other machines reach the server?",
            "How do I expose mlad to the network?",
            "Which flag sets the address?",
            "How do I set the listen address?",
            "Can I listen on 0.0.0.0?",
        ],
        "Use --host, for example --host 0.0.0.0. The default is 127.0.0.1.",
    ),
    (
        [
            "Which endpoints are there?",
            "What endpoints does mlad have?",
            "List the endpoints.",
            "List all endpoints.",
            "Which endpoints exist?",
            "Which URLs can I call?",
            "What is the API?",
            "What does the API look like?",
            "Show me the endpoints.",
            "Which routes are there?",
            "What paths does the server answer?",
            "Give me all endpoints.",
            "What API calls does mlad offer?",
            "What endpoints can I use?",
        ],
        "POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET /health, GET /ready,"
        " GET /ping, POST /invocations and GET /metrics.",
    ),
    (
        [
            "Which endpoint is for chat?",
            "How do I chat?",
            "How do I send a chat?",
            "Where do I send chat messages?",
            "How do I send a message?",
            "Which endpoint do I use for a conversation?",
            "How do I ask the model a question?",
            "How do I talk to the model over HTTP?",
            "What is the chat endpoint?",
            "How do I call the chat API?",
        ],
        "Send POST /v1/chat/completions with model and messages.",
    ),
    (
        [
            "Which endpoint completes text?",
            "How do I complete a text?",
            "Which endpoint continues a prompt?",
            "What is the completion endpoint?",
            "How do I send a plain prompt?",
            "How do I get a text completion?",
            "Where do I send a prompt?",
        ],
        "Send POST /v1/completions with model and prompt.",
    ),
    (
        [
            "How do I list the models?",
            "Which endpoint lists the models?",
            "How do I see which model is served?",
            "How do I find the model name?",
            "What is the model called?",
            "Which model is loaded?",
            "Where is the list of models?",
        ],
        "GET /v1/models lists the models that are served.",
    ),
    (
        [
            "How do I know that the server is ready?",
            "How do I check readiness?",
            "Which endpoint says that the model is loaded?",
            "How do I see if the model is loaded?",
            "When is the server ready?",
            "Is there a readiness probe?",
            "How do I wait for the model?",
            "What is the readiness check?",
            "What should my readiness probe call?",
        ],
        "GET /ready answers 200 when the model is loaded, and 503 while it loads or drains.",
    ),
    (
        [
            "How do I check that the server is alive?",
            "Is there a liveness probe?",
            "How do I check the health?",
            "Is there a health check?",
            "Which endpoint is the liveness check?",
            "What should my liveness probe call?",
            "How do I know that mlad is running?",
        ],
        "GET /health answers 200 while the process is live.",
    ),
    (
        [
            "What is the difference between /health and /ready?",
            "How do /health and /ready differ?",
            "/health or /ready?",
            "Should I use /health or /ready?",
            "Why are there both /health and /ready?",
        ],
        "/health says that the process is live. /ready says that the model is loaded and requests"
        " are taken.",
    ),
    (
        [
            "Does mlad work with SageMaker?",
            "How do I use mlad on SageMaker?",
            "Is SageMaker supported?",
            "Which endpoints are for SageMaker?",
            "What does SageMaker call?",
            "Does mlad support SageMaker?",
            "Does it run on SageMaker?",
            "Can I use SageMaker?",
            "Is there support for SageMaker?",
            "Does mlad have SageMaker endpoints?",
            "Can I deploy mlad on SageMaker?",
        ],
        "Yes. GET /ping is the SageMaker health check, and POST /invocations takes a chat or a"
        " completion.",
    ),
    (
        [
            "How do I stream tokens?",
            "How does streaming work?",
            "How do I get a stream?",
            "How can I stream the answer?",
            "Does mlad support streaming?",
            "Can I stream?",
            "How do I turn on streaming?",
            "How do I get tokens one by one?",
            "How do I receive tokens as they come?",
            "Is streaming possible?",
            "Is streaming supported?",
            "Is there support for streaming?",
            "Can I get the tokens as they are made?",
            "What are server-sent events?",
            "How do I use SSE?",
        ],
        'Send "stream": true. Tokens come as server-sent events, and the last is data: [DONE].',
    ),
    (
        [
            "How does a stream end?",
            "How do I know that the stream is over?",
            "What is the last event of a stream?",
            "What does data: [DONE] mean?",
            "What is [DONE]?",
            "When does the stream end?",
            "What comes at the end of a stream?",
        ],
        "A stream ends with data: [DONE].",
    ),
    (
        [
            "What is greedy decoding?",
            "How do I get greedy decoding?",
            "What does temperature 0 mean?",
            "How do I turn off sampling?",
            "How do I get the same answer each time?",
            "How do I make the answers deterministic?",
            "What happens at temperature 0?",
            "How do I decode greedily?",
        ],
        "Set temperature to 0. Then each token is the most likely one.",
    ),
    (
        [
            "Which sampling parameters are there?",
            "Which sampling options does mlad have?",
            "List the sampling parameters.",
            "How do I control sampling?",
            "What sampling settings can I use?",
            "Which request parameters are supported?",
            "What parameters can I send?",
        ],
        "temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty,"
        " frequency_penalty, logit_bias, seed, stop, max_tokens, min_tokens, n and logprobs.",
    ),
    (
        [
            "How do I limit the answer length?",
            "How do I make answers shorter?",
            "How do I limit the number of tokens?",
            "How do I set the maximum number of tokens?",
            "My answer is cut off. Why?",
            "How long can an answer be?",
        ],
        "Set max_tokens in the request. The context is limited by --max-model-len.",
    ),
    (
        [
            "How long can my prompt be?",
            "What is the context length?",
            "How do I set the context length?",
            "What is the longest context?",
            "Which flag limits the context?",
            "How do I get a longer context?",
            "What is the maximum context?",
        ],
        "--max-model-len sets the longest context, in tokens.",
    ),
    (
        [
            "How do I make sampling repeatable?",
            "How do I reproduce an answer?",
            "How do I get the same sample again?",
            "Can I set a random seed?",
            "Is sampling reproducible?",
        ],
        "Set seed in the request: the same seed gives the same tokens.",
    ),
    (
        [
            "Which flags are there?",
            "List the flags.",
            "What options does mlad have?",
            "Which command line options exist?",
            "What flags can I use?",
            "List all options.",
            "Show me the flags.",
            "What can I configure?",
            "What settings are there?",
            "Which settings does the server have?",
        ],
        "--model, --served-model-name, --host, --port, --max-model-len, --max-num-seqs,"
        " --max-num-batched-tokens, --num-kv-pages, --kv-cache-memory-mib, --enable-prefix-caching,"
        " --max-queue, --max-connections, --max-body-mib, --request-timeout-s, --drain-timeout-s,"
        " --threads, --log-level and --config.",
    ),
    (
        [
            "How do I configure mlad?",
            "How do I set options?",
            "Where do I put settings?",
            "How does configuration work?",
            "What ways are there to configure the server?",
            "Can I configure mlad without flags?",
            "How do I change a setting?",
        ],
        "Use a flag like --port 8080, an environment variable like MLAD_PORT, or a line port ="
        " 8080 in the config file.",
    ),
    (
        [
            "Which environment variables are there?",
            "Can I use environment variables?",
            "How do I use environment variables?",
            "What is the prefix of the environment variables?",
            "How are the environment variables named?",
            "Does mlad read the environment?",
        ],
        "Each flag has an environment variable: MLAD_ and its name in capitals, such as"
        " MLAD_MAX_QUEUE for --max-queue.",
    ),
    (
        [
            "Is there a config file?",
            "How do I use a config file?",
            "What does the config file look like?",
            "What is the format of the config file?",
            "How do I write a config file?",
            "Can I keep my settings in a file?",
            "What do I write into the config file?",
            "Show me a config file.",
            "How do I make a config file?",
            "What does a config file contain?",
        ],
        "Yes. Pass --config FILE. Each line is flag = value, such as port = 8080.",
    ),
    (
        [
            "What happens when the queue is full?",
            "What if too many requests come?",
            "What happens under overload?",
            "What happens when the server is too busy?",
            "Is there a limit on waiting requests?",
            "How does mlad handle overload?",
            "What does a full queue do?",
            "What is Retry-After?",
            "What does the Retry-After header say?",
            "Too many requests?",
        ],
        "When the queue is full, mlad answers 429 with a Retry-After header. --max-queue sets how"
        " many requests may wait.",
    ),
    (
        [
            "Which errors are there?",
            "Which status codes does mlad use?",
            "List the errors.",
            "List the error codes.",
            "What errors can I get?",
            "Which HTTP codes can mlad return?",
            "What status codes are there?",
        ],
        "400 bad request, 404 unknown model or path, 405 wrong method, 408 too slow, 413 body too"
        " large, 415 wrong content type, 429 queue full, 500 server error and 503 not ready.",
    ),
    (
        [
            "What does an error look like?",
            "What is the format of an error?",
            "What is in an error body?",
            "What does the error body look like?",
            "How are errors returned?",
            "Which fields does an error have?",
            "What is the error format?",
        ],
        'An error is JSON: {"error": {"message", "type", "param", "code"}}.',
    ),
    (
        [
            "Which metrics are there?",
            "What metrics does mlad have?",
            "List the metrics.",
            "What does mlad measure?",
            "Does mlad have metrics?",
            "Does mlad support Prometheus?",
            "How do I monitor mlad?",
            "How do I monitor the server?",
            "Where are the metrics?",
            "Can I use Prometheus?",
            "How do I scrape metrics?",
            "Is there monitoring?",
            "Is Prometheus supported?",
            "Does it have Prometheus metrics?",
        ],
        "GET /metrics gives Prometheus metrics with vLLM names, such as vllm:num_requests_running,"
        " vllm:kv_cache_usage_perc and vllm:time_to_first_token_seconds.",
    ),
    (
        [
            "Which metric shows the queue?",
            "How do I see how many requests wait?",
            "Which metric counts waiting requests?",
            "How long is the queue?",
        ],
        "vllm:num_requests_waiting is how many requests wait.",
    ),
    (
        [
            "Which metric shows the latency?",
            "How do I measure latency?",
            "Which metrics are about latency?",
            "How do I see how fast the server is?",
        ],
        "vllm:time_to_first_token_seconds, vllm:inter_token_latency_seconds and"
        " vllm:e2e_request_latency_seconds.",
    ),
    (
        [
            "What is the prefix cache?",
            "How does prefix caching work?",
            "What does prefix caching do?",
            "Does mlad cache prompts?",
            "How do I turn on prefix caching?",
            "How are earlier prompts reused?",
            "Is there a prompt cache?",
            "Can I make repeated prompts faster?",
            "My prompts share a prefix. Can that be faster?",
            "How do I reuse a prompt?",
            "Are repeated prompts faster?",
            "Is prefix caching supported?",
            "How do I speed up repeated prompts?",
        ],
        "The prefix cache reuses the pages of earlier prompts, so a shared prefix is computed only"
        " once. Turn it on with --enable-prefix-caching.",
    ),
    (
        [
            "What is a page?",
            "How many tokens does a page hold?",
            "How big is a KV page?",
            "What is a KV cache page?",
            "How is the KV cache divided?",
            "How large is a page of the cache?",
        ],
        "A page is a part of the KV cache that holds 64 tokens.",
    ),
    (
        [
            "What happens when pages run out?",
            "What is preemption?",
            "What happens when the KV cache is full?",
            "When is a sequence preempted?",
            "What if the cache runs out of pages?",
            "How does preemption work?",
            "What does preempted mean?",
            "What if the KV cache is full?",
            "The KV cache is full. What now?",
            "What happens if the cache fills up?",
            "Why was my sequence preempted?",
            "What happens when there are no free pages?",
        ],
        "When pages run out, the latest sequence is preempted: its pages are freed and it is"
        " recomputed later.",
    ),
    (
        [
            "How do I stop mlad?",
            "How do I stop the server?",
            "What does SIGTERM do?",
            "What happens on SIGTERM?",
            "How do I shut down mlad?",
            "What is draining?",
            "What is a drain?",
            "How does shutdown work?",
            "What happens to running requests at shutdown?",
            "How do I restart without losing requests?",
            "How do I stop it gracefully?",
        ],
        "Send SIGTERM. mlad drains: requests in flight finish, then it exits with 0.",
    ),
    (
        [
            "What is MLA?",
            "What is Multi-head Latent Attention?",
            "What does MLA mean?",
            "Explain MLA.",
            "How does MLA work?",
            "What is latent attention?",
            "Why is MLA good?",
            "What is the advantage of MLA?",
        ],
        "MLA is Multi-head Latent Attention. It keeps one small latent vector per token and layer"
        " in the KV cache, and one copy serves all heads.",
    ),
    (
        [
            "What is the KV cache?",
            "What is a KV cache?",
            "What is the KV cache for?",
            "What does KV cache mean?",
            "Explain the KV cache.",
            "Why is there a KV cache?",
        ],
        "The KV cache keeps what attention needs of earlier tokens. mlad divides it into pages of"
        " 64 tokens.",
    ),
    (
        [
            "Is mlad fast?",
            "How fast is mlad?",
            "How many tokens per second does it make?",
            "What is the throughput?",
            "Is mlad better than vLLM?",
            "How does mlad compare with other servers?",
            "Who wrote mlad?",
            "Which version of mlad is this?",
            "How many GPUs can mlad use?",
            "Where is the source code?",
            "When was mlad released?",
            "How do I contribute to mlad?",
            "Where do I report a bug?",
        ],
        UNKNOWN,
    ),
    (
        [
            "How big is the KV cache per token?",
            "How many values are cached per token?",
            "What is in the KV cache?",
            "What does the KV cache hold?",
            "How much does a token need in the cache?",
            "What does 576 mean?",
            "Why are there 576 values?",
            "Where does 576 come from?",
            "What are the 576 values?",
            "Why 576?",
            "How large is a cache entry?",
            "What is stored for a token?",
        ],
        "The KV cache holds 576 values per token and layer: 512 latent and 64 rope. One copy"
        " serves all heads.",
    ),
    (
        [
            "Is mlad compatible with the OpenAI API?",
            "Can I use the OpenAI client?",
            "Does the OpenAI Python client work?",
            "How do I use mlad from Python?",
            "Which client can I use?",
            "Is the API OpenAI compatible?",
            "How do I connect the OpenAI SDK?",
        ],
        "Yes. Use an OpenAI client with the base URL http://127.0.0.1:8080/v1.",
    ),
    (
        [
            "How do I call mlad with curl?",
            "Show me a curl example.",
            "What is an example request?",
            "Give me an example.",
            "What does a request look like?",
            "How do I send a request?",
            "Show an example request.",
        ],
        "curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' -d"
        ' \'{"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}\'',
    ),
    (
        [
            "Does mlad support tools?",
            "Can I use function calling?",
            "How do I use tools?",
            "How do tool calls work?",
            "Can the model call functions?",
            "Is function calling supported?",
        ],
        "Yes. Send tools with the chat request; the answer has tool_calls with a name and"
        " arguments.",
    ),
    (
        [
            "How do I batch requests?",
            "Does mlad batch requests?",
            "How many requests run at once?",
            "How many sequences are in a batch?",
            "What limits the batch size?",
            "How do I set the batch size?",
        ],
        "mlad batches requests by itself. --max-num-seqs sets how many sequences run in one batch.",
    ),
    (
        [
            "How much memory does the KV cache use?",
            "How do I set the size of the KV cache?",
            "How do I give the cache more memory?",
            "Which flag sets the cache size?",
            "How do I limit the memory?",
            "How do I limit memory usage?",
            "How do I set the memory?",
            "How do I use less GPU memory?",
            "How do I make the KV cache larger?",
            "How do I get a larger KV cache?",
            "How do I get a bigger cache?",
            "Can I make the cache bigger?",
            "The KV cache is too small. What can I do?",
        ],
        "--kv-cache-memory-mib sets the memory of the KV cache in MiB, and --num-kv-pages its"
        " number of pages.",
    ),
    (
        [
            "How big are you?",
            "How many parameters do you have?",
            "What size is this model?",
            "What is the demo model?",
            "What is your architecture?",
            "How many layers do you have?",
            "What model are you?",
            "Which model is this?",
            "Describe the demo model.",
        ],
        "I am the demo model of mlad: about 4.5 million parameters, 4 layers, 2 heads and 8"
        " experts, in the shape of DeepSeek V3.",
    ),
    (
        [
            "How were you trained?",
            "Who trained you?",
            "What data were you trained on?",
            "Where do you come from?",
            "How were you made?",
            "How do I retrain the demo model?",
        ],
        "I was trained from scratch by scripts/demo/train.py, on text made by a program.",
    ),
    (
        [
            "Who are you?",
            "What are you?",
            "What is your name?",
            "What's your name?",
            "Introduce yourself.",
            "Are you a bot?",
            "Are you an AI?",
            "Who am I talking to?",
            "Do you have a name?",
            "Are you ChatGPT?",
            "Are you DeepSeek?",
            "Are you a person?",
            "Tell me about yourself.",
        ],
        "I am the small demo model that ships with mlad.",
    ),
    (
        [
            "What can you do?",
            "How can you help me?",
            "Help",
            "What do you know?",
            "What are you good at?",
            "What should I ask you?",
            "What can I ask?",
            "Can you help me?",
            "I need help.",
            "What are your abilities?",
            "Give me some ideas what to ask.",
            "What do you do?",
            "What can I do with you?",
            "What can I do here?",
            "What can I use you for?",
            "How can I use you?",
            "What tasks can you do?",
        ],
        ABILITIES,
    ),
]

SMALL_TALK: list[tuple[list[str], str]] = [
    (
        ["Hello", "Hi", "Hey", "Hello there", "Hi there", "Hey there", "Hello, world", "Greetings"]
        + ["Good morning", "Good evening", "Good afternoon", "Good day", "Hello again", "Hallo"]
        + ["hello, how is it going", "Hi, are you there", "Anyone there", "Yo", "Howdy"],
        "Hello! I am the demo model of mlad. How can I help?",
    ),
    (
        ["How are you?", "How are you doing?", "How do you do?", "Are you well?", "What's up?"]
        + ["How is it going?", "How are you today?", "Are you OK?"],
        "I am fine, thank you. How can I help?",
    ),
    (
        ["Thanks", "Thank you", "Thanks a lot", "Thank you very much", "Great, thanks", "Thx"]
        + ["That helped, thank you", "Perfect, thanks", "Thanks for your help", "Many thanks"],
        "You are welcome!",
    ),
    (
        ["Bye", "Goodbye", "See you", "Good night", "See you later", "That is all", "Bye bye"]
        + ["I am done", "Have a nice day"],
        "Goodbye!",
    ),
    (
        ["OK", "Okay", "Good", "Great", "Nice", "Cool", "I see", "Understood", "Well done", "Wow"]
        + ["Good job", "That is right", "Correct", "Yes", "Fine", "Very good", "Awesome"],
        "Good. What else can I do?",
    ),
    (
        ["No", "Wrong", "That is wrong", "You are wrong", "That is not right", "Bad answer"]
        + ["This is not correct", "Are you sure?", "I don't think so"],
        "I am sorry. I am a small model and make mistakes. Please ask again in other words.",
    ),
    (
        ["Test", "Testing", "This is a test", "test 1 2 3", "Ping", "Can you hear me?"]
        + ["Are you working?", "Does this work?", "Say something", "Is this on?"],
        "It works. How can I help?",
    ),
    (
        ["Tell me a joke", "Do you know a joke?", "Make me laugh", "Say something funny"],
        "Why was the KV cache so calm? It let go of its old pages.",
    ),
]


@dataclass(frozen=True)
class Topic:
    """One answer, the questions that lead to it, and the follow-up it allows (a flag name)."""

    kind: str
    questions: list[str]
    answer: str
    flag: str = ""


def env_name(flag: str) -> str:
    """The environment variable of a flag: max-queue -> MLAD_MAX_QUEUE."""
    return "MLAD_" + flag.upper().replace("-", "_")


def topics() -> list[Topic]:
    """Every fact as a Topic, in a fixed order."""
    out = [Topic("topic", qs, a) for qs, a in TOPICS]
    for flag, answer, value in FLAGS:
        out.append(Topic("flag", [q.format(f=flag) for q in FLAG_QUESTIONS], answer, flag))
        env = f"{env_name(flag)} sets --{flag}."
        out.append(Topic("env", [q.format(f=flag) for q in ENV_QUESTIONS], env, flag))
        line = f"Write {flag} = {value} in the config file."
        out.append(Topic("config", [q.format(f=flag) for q in CONFIG_QUESTIONS], line, flag))
    for method, path, answer in ENDPOINTS:
        questions = [q.format(p=path, m=method) for q in ENDPOINT_QUESTIONS]
        out.append(Topic("endpoint", questions, answer))
    for code, meaning, remedy in ERRORS:
        questions = [q.format(c=code) for q in ERROR_QUESTIONS]
        out.append(Topic("error", questions, f"{meaning} {remedy}"))
    for metric, answer in METRICS:
        short = metric.removeprefix("vllm:")
        questions = [q.format(m=metric, s=short) for q in METRIC_QUESTIONS]
        out.append(Topic("metric", questions, answer))
    for field, answer in SAMPLING:
        questions = [q.format(p=field) for q in SAMPLING_QUESTIONS]
        out.append(Topic("sampling", questions, answer))
    return out
