"""A model shard for the router of text-generation-inference (TGI): `generate.v3` over gRPC.

    ENGINE/bin/python tests/contracts/tgi_shard.py DESCRIPTORS MODEL SOCKET

DESCRIPTORS is the descriptor set of proto/v3/generate.proto, MODEL a folder with safetensors. Runs with the Python of
vLLM's environment, which has grpcio, outlines_core and transformers. The router and its messages are TGI's; the shard
follows TGI's models/causal_lm.py, utils/tokens.py and utils/logits_process.py, except that:

- each request has its own cache and forward pass, so that an answer does not depend on the other requests;
- blocks, chunks and log-probabilities of prompts, adapters, watermarks, frequency_penalty and typical_p are ignored.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

Json = dict[str, Any]

# The environment of the type checker lacks these packages.
grpc: Any = import_module("grpc")
outlines_core: Any = import_module("outlines_core")
torch: Any = import_module("torch")
transformers: Any = import_module("transformers")

MAX_BATCH_TOKENS = 1 << 16
_LENGTH, _EOS, _STOP = range(3)  # generate.v3.FinishReason
_UNFINISHED = "\ufffd"  # decoded from a part of a character


class Model:
    """The model with its tokenizer."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, truncation_side="left")
        self.eos = self.tokenizer.eos_token_id
        self.special = set(self.tokenizer.all_special_ids)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self.guide = lru_cache(32)(self._guide_index)

    def scores(self, ids: list[int], cache: Any) -> Any:
        """Read the ids into the cache, and return the scores of the next token as a matrix with one row."""
        found = self._model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return found.logits[0]

    def text(self, ids: list[int], *, skip_special: bool = False) -> str:
        decoded: str = self.tokenizer.decode(ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        return decoded

    def _guide_index(self, regex: str) -> Any:
        return outlines_core.Index(regex, self._vocabulary())

    @lru_cache(1)  # noqa: B019  one model for each process
    def _vocabulary(self) -> Any:
        texts: dict[str, list[int]] = {}
        for token, number in self.tokenizer.get_vocab().items():
            text = self.tokenizer.convert_tokens_to_string([token])
            if number not in self.special and _UNFINISHED not in text:
                texts.setdefault(text, []).append(number)
        return outlines_core.Vocabulary(self.eos, texts)


class Chooser:
    """The choice of the next token, with TGI's order of penalties, grammar and warpers."""

    def __init__(self, model: Model, parameters: Any) -> None:
        penalty, temperature, top_k, top_p = (
            getattr(parameters, name) for name in ("repetition_penalty", "temperature", "top_k", "top_p")
        )
        self._penalty = transformers.RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1.0 else None
        self._guide = outlines_core.Guide(model.guide(parameters.grammar)) if parameters.grammar else None
        self._warpers = [
            *([transformers.TemperatureLogitsWarper(temperature)] if temperature != 1.0 else ()),
            *([transformers.TopKLogitsWarper(top_k)] if top_k else ()),
            *([transformers.TopPLogitsWarper(top_p)] if top_p < 1.0 else ()),
        ]
        self._eos = model.eos
        self.seed = parameters.seed if parameters.do_sample or self._warpers else None
        self._random = None if self.seed is None else torch.Generator().manual_seed(self.seed)

    def choose(self, ids: list[int], scores: Any) -> tuple[int, Any]:
        """Return the next token and the log-probabilities of all tokens."""
        seen = torch.tensor([ids])
        if self._penalty is not None:
            scores = self._penalty(seen, scores)
        if self._guide is not None:
            mask = torch.full_like(scores, -torch.inf)
            mask[:, self._guide.get_tokens()] = 0
            scores = scores + mask
        for warp in self._warpers:
            scores = warp(seen, scores)
        logprobs = torch.log_softmax(scores, -1)[0]
        if self._random is None:
            token = int(scores[0].argmax())
        else:
            noise = torch.empty_like(logprobs).exponential_(1, generator=self._random)
            token = int((logprobs.exp() / noise).argmax())
        if self._guide is not None and token != self._eos:
            self._guide.advance(token)
        return token, logprobs


class Running:
    """A request in decoding."""

    def __init__(self, model: Model, request: Any) -> None:
        self.id = request.id
        self._model = model
        encoded = model.tokenizer(
            request.inputs, truncation=True, max_length=request.truncate, add_special_tokens=request.add_special_tokens
        )
        self._ids: list[int] = encoded["input_ids"]
        self._prompt_tokens = len(self._ids)
        self._read = 0  # tokens in the cache
        self._cache = transformers.DynamicCache()
        self._prefix, self._shown = max(0, self._prompt_tokens - 5), self._prompt_tokens  # TGI's offsets of decoding
        self._chooser = Chooser(model, request.parameters)
        self._top = request.top_n_tokens
        stopping = request.stopping_parameters
        self._max_new_tokens = stopping.max_new_tokens
        self._ignore_eos = stopping.ignore_eos_token
        self._stops = [re.compile(f"{re.escape(stop)}$") for stop in stopping.stop_sequences]
        self._output = ""

    def step(self) -> Json:
        """Generate a token, and return it as a Generation. The last one has the generated text."""
        scores = self._model.scores(self._ids[self._read :], self._cache)
        self._read = len(self._ids)
        token, logprobs = self._chooser.choose(self._ids, scores)
        self._ids.append(token)
        text = self._next_text()
        generation: Json = {
            "request_id": self.id,
            "tokens": self._tokens([token], logprobs, [text]),
            "top_tokens": [self._tokens(logprobs.topk(self._top).indices.tolist(), logprobs)] if self._top else [],
        }
        if (reason := self._finish_reason(token, text)) is not None:
            written = self._ids[self._prompt_tokens :]
            generation["generated_text"] = {
                "text": self._model.text(written, skip_special=True),
                "generated_tokens": len(written),
                "finish_reason": reason,
                "seed": self._chooser.seed,
            }
        return generation

    def _next_text(self) -> str:
        """Return the text that the last token adds: none while a character is incomplete."""
        before = self._model.text(self._ids[self._prefix : self._shown])
        text = self._model.text(self._ids[self._prefix :])
        if len(text) <= len(before) or text.endswith(_UNFINISHED):
            return ""
        self._prefix, self._shown = self._shown, len(self._ids)
        return text[len(before) :]

    def _finish_reason(self, token: int, text: str) -> int | None:
        """Return TGI's finish reason. The limit precedes the others, and a stop sequence must end with a token."""
        if len(self._ids) - self._prompt_tokens >= self._max_new_tokens:
            return _LENGTH
        if token == self._model.eos and not self._ignore_eos:
            return _EOS
        self._output = (self._output + text)[-300:]
        return _STOP if any(stop.search(self._output) for stop in self._stops) else None

    def _tokens(self, ids: list[int], logprobs: Any, texts: list[str] | None = None) -> Json:
        return {
            "ids": ids,
            "logprobs": [float(logprobs[one]) for one in ids],
            "texts": [self._model.text([one]) for one in ids] if texts is None else texts,
            "is_special": [one in self._model.special for one in ids],
        }


class Shard:
    """The methods of the service. A batch is a list of requests; a call generates one token for each of them."""

    def __init__(self, model: Model, socket: str) -> None:
        self._model = model
        self._socket = socket
        self._batches: dict[int, list[Running]] = {}

    def health(self, _: Any) -> Json:
        return {}

    def info(self, _: Any) -> Json:
        # As with most models of TGI, requests join a running batch at its next token.
        return {"dtype": "torch.float32", "device_type": "cpu", "support_chunking": True, "attention_impl": "paged",
                "block_size": 1}  # fmt: skip

    def service_discovery(self, _: Any) -> Json:
        return {"urls": [f"unix://{self._socket}"]}

    def clear_cache(self, request: Any) -> Json:
        if request.HasField("id"):
            self._batches.pop(request.id, None)
        else:
            self._batches.clear()
        return {}

    def warmup(self, request: Any) -> Json:
        limits = {name: getattr(request, name) for name in ("max_input_tokens", "max_total_tokens")}
        return {"max_supported_total_tokens": MAX_BATCH_TOKENS, **limits}

    def filter_batch(self, request: Any) -> Json:
        kept = [one for one in self._batches.pop(request.batch_id) if one.id in set(request.request_ids)]
        return {"batch": self._store(request.batch_id, kept)}

    def prefill(self, request: Any) -> Json:
        running = self._batches.pop(request.cached_batch.id) if request.HasField("cached_batch") else []
        return self._step(request.batch.id, running + [Running(self._model, one) for one in request.batch.requests])

    def decode(self, request: Any) -> Json:
        running = [one for batch in request.batches for one in self._batches.pop(batch.id)]
        return self._step(request.batches[0].id, running)

    def _step(self, batch_id: int, running: list[Running]) -> Json:
        began = time.monotonic_ns()
        with torch.inference_mode():
            generations = [one.step() for one in running]
        rest = [one for one, made in zip(running, generations, strict=True) if "generated_text" not in made]
        took = time.monotonic_ns() - began
        batch = self._store(batch_id, rest)
        return {"generations": generations, "batch": batch, "forward_ns": took, "decode_ns": 0, "total_ns": took}

    def _store(self, batch_id: int, running: list[Running]) -> Json | None:
        if not running:
            return None
        self._batches[batch_id] = running
        ids = [one.id for one in running]
        return {"id": batch_id, "request_ids": ids, "size": len(ids), "current_tokens": len(ids)}


def service(descriptors: Path, shard: Shard) -> Any:
    """Return the gRPC handler of the shard's methods, which return the fields of their replies."""
    pool = import_module("google.protobuf.descriptor_pool").DescriptorPool()
    files = import_module("google.protobuf.descriptor_pb2").FileDescriptorSet.FromString(descriptors.read_bytes())
    for file in files.file:
        pool.Add(file)
    message = import_module("google.protobuf.message_factory").GetMessageClass
    found = pool.FindServiceByName("generate.v3.TextGenerationService")

    def handler(method: Any) -> Any:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
        call, reply = getattr(shard, name), message(method.output_type)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, _: reply(**call(request)),
            request_deserializer=message(method.input_type).FromString,
            response_serializer=reply.SerializeToString,
        )

    return grpc.method_handlers_generic_handler(found.full_name, {one.name: handler(one) for one in found.methods})


def main() -> None:
    """Serve until SIGTERM."""
    descriptors, folder, socket = sys.argv[1:]
    torch.set_num_threads(1)  # threads that wait for each other nearly stop on a busy machine
    shard = Shard(Model(folder), socket)
    server = grpc.server(ThreadPoolExecutor(1))  # one call at a time
    server.add_generic_rpc_handlers((service(Path(descriptors), shard),))
    server.add_insecure_port(f"unix://{socket}")
    signal.signal(signal.SIGTERM, lambda *_: server.stop(0))
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
